package main

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/metadata"
)

func TestKeys(t *testing.T) {
	c := newCluster(t, func(o *options) { o.apiKeys = []string{"one", "two"} })
	c.router.setServing(true)
	c.router.on(func(_ *body, out stream) error { return out.Send(plain("{}")) })
	for _, header := range []string{"Bearer one", "bearer two", "BEARER  two "} {
		c.want(c.do("POST", "/v1/completions", "{}", "Authorization", header), 200, "{}")
	}
	for _, path := range []string{"/v1/completions", "/v1/models", "/v1/models/a", "/version", "/metrics", "/tokenize", "/nowhere", "/",
		"//health",
		"/health/", "/Health", "/health%2f", "/v1/../health"} {
		for _, header := range []string{"", "one", "Bearer", "Bearer ", "Bearer three", "Bearer one,two",
			"Bearer on", "Basic one", "Bearer one two"} {
			r := c.do("GET", path, "", "Authorization", header)
			c.want(r, 401, `"code":"invalid_api_key"`)
			if r.Header.Get("Www-Authenticate") != "Bearer" {
				t.Error("no WWW-Authenticate")
			}
		}
	}
	for _, path := range []string{"/health", "/ping"} {
		if r := c.do("GET", path, ""); r.StatusCode != 200 || r.body != "" {
			t.Errorf("%s: %d '%s'", path, r.StatusCode, r.body)
		}
	}
	if r := c.do("OPTIONS", "/v1/completions", ""); r.StatusCode != 405 {
		t.Errorf("OPTIONS: %d", r.StatusCode)
	}
}

func TestCrossOrigin(t *testing.T) {
	open := newCluster(t, func(o *options) { o.apiKeys = []string{"k"} })
	ask := []string{"Origin", "https://a.example", "Access-Control-Request-Method", "POST",
		"Access-Control-Request-Headers", "authorization, x-stainless-os"}
	r := open.do("OPTIONS", "/v1/chat/completions", "", ask...)
	for name, want := range map[string]string{"Access-Control-Allow-Origin": "*",
		"Access-Control-Allow-Headers": "authorization, x-stainless-os",
		"Access-Control-Allow-Methods": corsMethods, "Access-Control-Allow-Credentials": ""} {
		if got := r.Header.Get(name); r.StatusCode != 204 || got != want {
			t.Errorf("%d, %s: '%s', want '%s'", r.StatusCode, name, got, want)
		}
	}
	if r = open.do("GET", "/v1/models", "", "Origin", "https://a.example"); r.StatusCode != 401 ||
		r.Header.Get("Access-Control-Allow-Origin") != "*" {
		t.Errorf("a page can not read the 401: %d %v", r.StatusCode, r.Header)
	}
	strict := newCluster(t, func(o *options) {
		o.allowedOrigins, o.allowCredentials = []string{"https://a.example", "https://b.example"}, true
		o.allowedMethods, o.allowedHeaders = []string{"POST", "GET"}, []string{"Authorization"}
	})
	r = strict.do("OPTIONS", "/v1/chat/completions", "", ask...)
	for name, want := range map[string]string{"Access-Control-Allow-Origin": "https://a.example",
		"Access-Control-Allow-Headers": "Authorization",
		"Access-Control-Allow-Methods": "POST, GET", "Access-Control-Allow-Credentials": "true", "Vary": "Origin"} {
		if got := r.Header.Get(name); got != want {
			t.Errorf("%s: '%s', want '%s'", name, got, want)
		}
	}
	r = strict.do("GET", "/v1/models", "", "Origin", "https://c.example")
	if r.StatusCode != 200 || r.Header.Get("Access-Control-Allow-Origin") != "" {
		t.Errorf("a stranger: %d %v", r.StatusCode, r.Header)
	}
}

func TestBodyLimit(t *testing.T) {
	c := newCluster(t, func(o *options) { o.maxBodyBytes = 100_000 })
	sizes := make(chan int, 10)
	c.router.on(func(r *body, out stream) error {
		sizes <- len(r.GetData())
		return out.Send(plain("{}"))
	})
	for _, size := range []int{0, 1, bodyFirstBuffer - 1, bodyFirstBuffer, bodyFirstBuffer + 1, 100_000} {
		for _, chunked := range []bool{false, true} {
			var from io.Reader = strings.NewReader(strings.Repeat("x", size))
			if chunked {
				from = io.MultiReader(from) // hides the length
			}
			response, err := http.Post(c.url+"/v1/completions", "application/json", from)
			if err != nil || response.StatusCode != 200 {
				t.Fatalf("%d bytes: %v %v", size, response, err)
			}
			response.Body.Close()
			if got := <-sizes; got != size {
				t.Errorf("sent %d, router got %d", size, got)
			}
		}
	}
	c.want(c.do("POST", "/v1/completions", strings.Repeat("x", 100_001)), 413, "larger than 100000 bytes")
	response, err := http.Post(c.url+"/v1/completions", "", io.MultiReader(strings.NewReader(strings.Repeat("x", 100_001))))
	if err != nil || response.StatusCode != 413 {
		t.Errorf("chunked: %v %v", response, err)
	}
	if len(sizes) != 0 {
		t.Error("the router saw a body that was refused")
	}
	// A length that is claimed, not sent: the refusal comes before the body.
	conn := c.dial()
	fmt.Fprintf(conn, "POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 99999999999\r\n\r\n")
	c.wantStatus(conn, 413)
	eventually(t, "the budget is whole", func() bool { return c.budget.held.Load() == 0 })
}

func TestBodyBudget(t *testing.T) {
	c := newCluster(t)
	c.budget.max = 1000
	c.router.on(func(_ *body, out stream) error { return out.Send(plain("{}")) })
	c.want(c.do("POST", "/v1/completions", strings.Repeat("x", 2000)), 429, "queue_full")
	c.want(c.do("POST", "/v1/completions", strings.Repeat("x", 900)), 200, "")
	eventually(t, "the budget is whole", func() bool { return c.budget.held.Load() == 0 })
}

func (c *cluster) dial() net.Conn {
	c.t.Helper()
	conn, err := net.Dial("tcp", c.address())
	if err != nil {
		c.t.Fatal(err)
	}
	c.t.Cleanup(func() { _ = conn.Close() })
	_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
	return conn
}

func (c *cluster) wantStatus(conn net.Conn, code int) {
	c.t.Helper()
	response, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil || response.StatusCode != code {
		c.t.Errorf("want %d: %v %v", code, response, err)
	}
}

func TestHeaderLimits(t *testing.T) {
	c := newCluster(t)
	c.want(c.do("GET", "/v1/models", "", "X-Big", strings.Repeat("x", headerBytesMax)), 431, "headers are larger")
	c.want(c.do("GET", "/v1/models", "", "X-Big", strings.Repeat("x", headerBytesMax-1000)), 200, "")
	conn := c.dial()
	fmt.Fprintf(conn, "GET /v1/models HTTP/1.1\r\nHost: h\r\n")
	for range 100 { // one after the other: the server may end it at any of them
		if _, err := fmt.Fprintf(conn, "X-Big: %s\r\n", strings.Repeat("x", 1000)); err != nil {
			break
		}
	}
	if response, err := http.ReadResponse(bufio.NewReader(conn), nil); err == nil && response.StatusCode != 431 {
		t.Errorf("HTTP %d", response.StatusCode)
	}
	conn = c.dial()
	fmt.Fprintf(conn, "GET /v1/models HTTP/1.1\r\n\r\n") // no host
	c.wantStatus(conn, 400)
}

func TestSlowHeadersAreCutOff(t *testing.T) {
	if d := defaultOptions().headerTimeout; d <= 0 || d > time.Minute {
		t.Errorf("headers may take %v", d)
	}
	c := newCluster(t, func(o *options) { o.headerTimeout = 50 * time.Millisecond })
	if c.http.IdleTimeout != idleTimeout || c.http.MaxHeaderBytes != 2*headerBytesMax {
		t.Error("the server has no limits")
	}
	conn := c.dial()
	fmt.Fprintf(conn, "GET /v1/models HTTP/1.1\r\nX-Slow: ")
	if _, err := io.ReadAll(conn); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Errorf("still open: %v", err)
	}
}

func TestSlowBodyIsRefused(t *testing.T) {
	c := newCluster(t)
	// The grace is long, so the clock is turned: a deadline in the past is what its end looks like.
	here, there := net.Pipe()
	defer here.Close()
	defer there.Close()
	request := newBodyRequest(there, 10)
	_, held, no := readBody(request, http.NewResponseController(expiredWriter{there}), 100, &c.budget)
	if no == nil || no.http != 408 || held != 11 {
		t.Errorf("got %v, held %d", no, held)
	}
	c.budget.held.Add(-held)
}

// expiredWriter answers a request for a read deadline with one that has passed.
type expiredWriter struct{ conn net.Conn }

func (w expiredWriter) Header() http.Header         { return http.Header{} }
func (w expiredWriter) Write(p []byte) (int, error) { return len(p), nil }
func (w expiredWriter) WriteHeader(int)             {}
func (w expiredWriter) SetReadDeadline(time.Time) error {
	return w.conn.SetReadDeadline(time.Unix(1, 0))
}
func newBodyRequest(from io.Reader, n int) *http.Request {
	return &http.Request{Body: io.NopCloser(from), ContentLength: int64(n)}
}

func TestConnectionCap(t *testing.T) {
	c := newCluster(t, func(o *options) { o.maxConnections = 4 })
	var held []net.Conn
	for range 4 {
		conn := c.dial()
		fmt.Fprintf(conn, "GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
		c.wantStatus(conn, 200)
		held = append(held, conn)
	}
	conn := c.dial()
	c.wantStatus(conn, 429) // before a word was said
	if _, err := io.ReadAll(conn); err != nil && strings.Contains(err.Error(), "timeout") {
		t.Error("the connection above the cap stays open")
	}
	fmt.Fprintf(held[0], "GET /v1/models HTTP/1.1\r\nHost: h\r\n\r\n")
	c.wantStatus(held[0], 200)
	for _, conn := range held {
		_ = conn.Close()
	}
	eventually(t, "there is room again", func() bool {
		conn := c.dial()
		fmt.Fprintf(conn, "GET /v1/models HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
		response, err := http.ReadResponse(bufio.NewReader(conn), nil)
		return err == nil && response.StatusCode == 200
	})
}

func TestConnectionCapFitsTheDescriptors(t *testing.T) {
	o := defaultOptions()
	if n, err := connectionCap(o, 1<<20); n != o.maxConnections || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	if n, err := connectionCap(o, 1024); n != 1024-descriptorReserve || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	o.connectionsSet = true
	if _, err := connectionCap(o, 1024); err == nil || !strings.Contains(err.Error(), "--max-connections") {
		t.Errorf("%v", err)
	}
	if _, err := connectionCap(defaultOptions(), 64); err == nil {
		t.Error("no room at all is accepted")
	}
}

func TestTooManyCalls(t *testing.T) {
	c := newCluster(t)
	c.inflight.Store(c.relay.streamsMax())
	c.want(c.do("GET", "/v1/models", ""), 429, "queue_full")
	c.inflight.Store(0)
	c.want(c.do("GET", "/v1/models", ""), 200, "")
}

func TestClientGone(t *testing.T) {
	c := newCluster(t)
	for _, row := range []struct {
		name string
		sent int // messages before the client leaves
	}{{"queued", 0}, {"streaming", 3}} {
		started, ended := make(chan bool), make(chan time.Time, 1)
		c.router.on(func(_ *body, out stream) error {
			for range row.sent {
				if err := out.Send(events("data: x\n\n")); err != nil {
					return err
				}
			}
			close(started)
			<-out.Context().Done()
			ended <- time.Now()
			return out.Context().Err()
		})
		for _, chunked := range []string{"Content-Length: 2\r\n\r\n{}", "Transfer-Encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n"} {
			conn := c.dial()
			fmt.Fprintf(conn, "POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\n%s", chunked)
			<-started
			left := time.Now()
			_ = conn.Close()
			select {
			case at := <-ended:
				t.Logf("%s: cancelled after %v", row.name, at.Sub(left))
			case <-time.After(20 * time.Second):
				t.Fatalf("%s: the call goes on", row.name)
			}
			started = make(chan bool)
		}
	}
	eventually(t, "nothing is in flight", func() bool { return c.inflight.Load() == 0 })
	eventually(t, "both are in the log", func() bool {
		return strings.Contains(c.log.String(), "status=499") && strings.Count(c.log.String(), "gone=true") >= 4
	})
}

func TestDrain(t *testing.T) {
	c := newCluster(t)
	c.router.setServing(true)
	more := make(chan bool)
	c.router.on(func(_ *body, out stream) error {
		_ = out.Send(events("data: 1\n\n"))
		<-more
		return out.Send(events("data: [DONE]\n\n"))
	})
	eventually(t, "healthy", func() bool { return c.do("GET", "/health", "").StatusCode == 200 })
	response, err := http.Post(c.url+"/v1/chat/completions", "", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	// A probe that was under way before the signal.
	open := &c.listener.(*cappedListener).open
	before := open.Load()
	probe := c.dial()
	fmt.Fprintf(probe, "GET /health HTTP/1.1\r\n")
	eventually(t, "the probe is accepted", func() bool { return open.Load() > before })
	stopped := make(chan bool)
	go func() {
		c.shutdown(context.Background())
		close(stopped)
	}()
	eventually(t, "no new connections", func() bool {
		conn, err := net.Dial("tcp", c.address())
		if err == nil {
			_ = conn.Close()
		}
		return err != nil
	})
	fmt.Fprintf(probe, "Host: h\r\n\r\n")
	c.wantStatus(probe, 503)
	select {
	case <-stopped:
		t.Fatal("did not wait for the running request")
	default:
	}
	close(more)
	if data, err := io.ReadAll(response.Body); err != nil || string(data) != "data: 1\n\ndata: [DONE]\n\n" {
		t.Errorf("%q, %v", data, err)
	}
	<-stopped
}

func TestDrainThatRunsOutOfTime(t *testing.T) {
	c := newCluster(t)
	cancelled := make(chan bool)
	c.router.on(func(_ *body, out stream) error {
		_ = out.Send(events("data: 1\n\n"))
		<-out.Context().Done()
		close(cancelled)
		return nil
	})
	response, err := http.Post(c.url+"/v1/chat/completions", "", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	now, cancel := context.WithCancel(context.Background())
	cancel() // the second signal
	c.shutdown(now)
	<-cancelled
	if data, err := io.ReadAll(response.Body); err != nil || string(data) != "data: 1\n\n"+string(shuttingDown().event()) {
		t.Errorf("%q, %v", data, err)
	}
}

func TestNewRequestsWhileDraining(t *testing.T) {
	c := newCluster(t)
	c.draining.Store(true)
	r := c.do("GET", "/v1/models", "")
	c.want(r, 503, "shutting down")
	if r.Header.Get("Retry-After") == "" {
		t.Error("no retry-after")
	}
	c.want(c.do("GET", "/health", ""), 503, "shutting down")
	c.draining.Store(false)
}

func TestPanicCostsOneRequest(t *testing.T) {
	c := newCluster(t)
	planted := func(http.ResponseWriter, *http.Request, map[string]string) { panic("planted") }
	if err := c.mux.HandlePath("GET", "/planted", planted); err != nil {
		t.Fatal(err)
	}
	c.want(c.do("GET", "/planted", ""), 500, internalMessage)
	c.want(c.do("GET", "/v1/models", ""), 200, "")
	if !strings.Contains(c.log.String(), "panic=planted") {
		t.Error("not in the log")
	}
}

func TestTLS(t *testing.T) {
	folder := t.TempDir()
	cert, key := writeCertificate(t, folder)
	c := newCluster(t, func(o *options) { o.tlsCert, o.tlsKey = cert, key })
	c.router.on(func(_ *body, out stream) error {
		_ = out.SendHeader(metadata.Pairs("x-http-code", "200"))
		for range 3 {
			if err := out.Send(events("data: x\n\n")); err != nil {
				return err
			}
		}
		return nil
	})
	for _, http2 := range []bool{false, true} {
		client := http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
			ForceAttemptHTTP2: http2}}
		response, err := client.Post("https://"+c.address()+"/v1/chat/completions", "", strings.NewReader("{}"))
		if err != nil {
			t.Fatal(err)
		}
		data, err := io.ReadAll(response.Body)
		response.Body.Close()
		if err != nil || string(data) != "data: x\n\ndata: x\n\ndata: x\n\n" || (response.ProtoMajor == 2) != http2 {
			t.Errorf("%s %q %v", response.Proto, data, err)
		}
		client.CloseIdleConnections()
	}
	if _, err := tlsConfig(&options{tlsCert: cert, tlsKey: cert}); err == nil || !strings.Contains(err.Error(), "--ssl-certfile") {
		t.Errorf("%v", err)
	}
}

func writeCertificate(t *testing.T, folder string) (cert, key string) {
	t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, &template, &template, private.Public(), private)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	cert, key = filepath.Join(folder, "cert.pem"), filepath.Join(folder, "key.pem")
	for path, block := range map[string]*pem.Block{cert: {Type: "CERTIFICATE", Bytes: der}, key: {Type: "EC PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(path, pem.EncodeToMemory(block), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
