package main

import (
	"context"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/grpc"
	"google.golang.org/grpc/health"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/protobuf/types/known/emptypb"

	phalanxv1 "phalanx/gateway/gen/phalanx/v1"
)

type (
	body   = httpbody.HttpBody
	stream = grpc.ServerStreamingServer[httpbody.HttpBody]
)

// fakeRouter is the OpenAI service with a handler that each test chooses.
type fakeRouter struct {
	phalanxv1.UnimplementedOpenAIServer
	mu       sync.Mutex
	handle   func(request *body, out stream) error
	metrics  string
	modelIDs []string
	server   *grpc.Server
	health   *health.Server
	address  string
}

func (f *fakeRouter) on(handle func(request *body, out stream) error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.handle = handle
}

func (f *fakeRouter) call(request *body, out stream) error {
	f.mu.Lock()
	handle := f.handle
	f.mu.Unlock()
	return handle(request, out)
}

func (f *fakeRouter) ChatCompletions(r *body, out stream) error { return f.call(r, out) }
func (f *fakeRouter) Completions(r *body, out stream) error     { return f.call(r, out) }
func (f *fakeRouter) Tokenize(r *body, out stream) error        { return f.call(r, out) }
func (f *fakeRouter) Detokenize(r *body, out stream) error      { return f.call(r, out) }

func (f *fakeRouter) ListModels(_ *emptypb.Empty, out stream) error {
	return out.Send(plain(`{"object":"list","data":[]}`))
}

func (f *fakeRouter) GetModel(r *phalanxv1.GetModelRequest, out stream) error {
	return out.Send(plain(`{"id":"` + r.GetId() + `"}`))
}

func (f *fakeRouter) Version(_ *emptypb.Empty, out stream) error {
	return out.Send(plain(`{"version":"1.2.3"}`))
}

func (f *fakeRouter) Metrics(_ *emptypb.Empty, out stream) error {
	f.mu.Lock()
	text := f.metrics
	f.mu.Unlock()
	half := len(text) / 2 // in two messages: the parts are one text
	if err := out.Send(&body{ContentType: metricsType, Data: []byte(text[:half])}); err != nil {
		return err
	}
	return out.Send(&body{Data: []byte(text[half:])})
}

func plain(text string) *body  { return &body{ContentType: "application/json", Data: []byte(text)} }
func events(text string) *body { return &body{ContentType: "text/event-stream", Data: []byte(text)} }

// listen starts to serve on the address, a unix socket or TCP.
func (f *fakeRouter) listen(t testing.TB, address string) {
	t.Helper()
	network, target := "tcp", address
	if path, unix := strings.CutPrefix(address, "unix:"); unix {
		network, target = "unix", path
	}
	var listener net.Listener
	var err error
	for range 50 { // a port that was just given up may need a moment
		if listener, err = net.Listen(network, target); err == nil {
			break
		}
		time.Sleep(20 * time.Millisecond)
	}
	if err != nil {
		t.Fatal(err)
	}
	f.server = grpc.NewServer(grpc.MaxRecvMsgSize(messageBytesMax64), grpc.MaxSendMsgSize(replyBytesMax),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: time.Millisecond, PermitWithoutStream: true}))
	f.health = health.NewServer()
	phalanxv1.RegisterOpenAIServer(f.server, f)
	grpc_health_v1.RegisterHealthServer(f.server, f.health)
	f.address = address
	if network == "tcp" {
		f.address = listener.Addr().String()
	}
	go func() { _ = f.server.Serve(listener) }()
	t.Cleanup(f.server.Stop)
}

func (f *fakeRouter) setServing(serving bool) {
	state := grpc_health_v1.HealthCheckResponse_NOT_SERVING
	if serving {
		state = grpc_health_v1.HealthCheckResponse_SERVING
	}
	f.health.SetServingStatus("", state)
}

// logBuffer collects log lines; all goroutines write to it.
type logBuffer struct {
	mu   sync.Mutex
	text strings.Builder
}

func (b *logBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.Write(p)
}

func (b *logBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.text.String()
}

// cluster is a gateway over a fake router.
type cluster struct {
	*server
	t      testing.TB
	router *fakeRouter
	log    *logBuffer
	url    string
}

// newCluster starts both; `change` edits the options first.
func newCluster(t testing.TB, change ...func(o *options)) *cluster {
	t.Helper()
	router := &fakeRouter{}
	router.listen(t, "unix:"+filepath.Join(socketFolder(t), "router.sock"))
	return newClusterOver(t, router, router.address, change...)
}

func newClusterOver(t testing.TB, router *fakeRouter, address string, change ...func(o *options)) *cluster {
	t.Helper()
	o := defaultOptions()
	o.router, o.host, o.port, o.routerConnections, o.logLevel = address, "127.0.0.1", 0, 1, "debug"
	for _, f := range change {
		f(o)
	}
	if err := o.validate(); err != nil {
		t.Fatal(err)
	}
	c := &cluster{t: t, router: router, log: &logBuffer{}}
	log, err := newLogger(c.log, o.logLevel, o.logFormat)
	if err != nil {
		t.Fatal(err)
	}
	if c.server, err = start(o, log); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ended, cancel := context.WithCancel(context.Background())
		cancel()
		c.shutdown(ended)
	})
	c.url = "http://" + c.address()
	return c
}

// socketFolder is short: a unix socket's path has a limit.
func socketFolder(t testing.TB) string {
	folder, err := os.MkdirTemp("", "phx")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	return folder
}

type reply struct {
	*http.Response
	body string
}

// do sends a request; headers are name, value, name, value ...
func (c *cluster) do(method, path, text string, headers ...string) reply {
	c.t.Helper()
	request, err := http.NewRequest(method, c.url+path, strings.NewReader(text))
	if err != nil {
		c.t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		request.Header.Set(headers[i], headers[i+1])
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		c.t.Fatal(err)
	}
	defer response.Body.Close()
	data, err := io.ReadAll(response.Body)
	if err != nil {
		c.t.Fatalf("%s %s: %v", method, path, err)
	}
	return reply{response, string(data)}
}

func (c *cluster) want(r reply, code int, text string) {
	c.t.Helper()
	if r.StatusCode != code {
		c.t.Errorf("HTTP %d, want %d: %s", r.StatusCode, code, r.body)
	}
	if !strings.Contains(r.body, text) {
		c.t.Errorf("'%s' is not in: %s", text, r.body)
	}
	if code >= 400 {
		for _, key := range []string{`{"error":{"message":"`, `"type":`, `"param":`, `"code":`} {
			if !strings.Contains(r.body, key) {
				c.t.Errorf("not the shape of an error: %s", r.body)
			}
		}
		if got := r.Header.Get("Content-Type"); got != "application/json" {
			c.t.Errorf("content type '%s'", got)
		}
	}
	if r.Header.Get("X-Request-Id") == "" {
		c.t.Error("no x-request-id")
	}
	for name := range r.Header {
		if strings.HasPrefix(name, "Grpc-") {
			c.t.Errorf("header %s", name)
		}
	}
}

// eventually waits for something that another goroutine brings about.
func eventually(t testing.TB, what string, is func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); time.Now().Before(end); time.Sleep(2 * time.Millisecond) {
		if is() {
			return
		}
	}
	t.Fatalf("never: %s", what)
}

func incoming(out stream) metadata.MD {
	md, _ := metadata.FromIncomingContext(out.Context())
	return md
}
