package main

import (
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

func TestHealthFollowsTheRouter(t *testing.T) {
	c := newCluster(t)
	for _, serving := range []bool{false, true, false, true} {
		c.router.setServing(serving)
		want := map[bool]int{true: 200, false: 503}[serving]
		for _, row := range [][2]string{{"GET", "/health"}, {"HEAD", "/health"}, {"GET", "/ping"}, {"POST", "/ping"}} {
			eventually(t, row[0]+" "+row[1], func() bool {
				r := c.do(row[0], row[1], "")
				if r.StatusCode == 200 && r.body != "" {
					t.Errorf("body '%s'", r.body)
				}
				return r.StatusCode == want
			})
		}
	}
}

func TestProbesShareAnAnswer(t *testing.T) {
	c := newCluster(t)
	c.router.setServing(true)
	eventually(t, "healthy", c.relay.healthy)
	c.relay.mu.Lock()
	c.relay.asked = time.Now().Add(time.Hour) // an answer that stays fresh
	c.relay.mu.Unlock()
	c.router.setServing(false)
	if !c.relay.healthy() {
		t.Error("asked again")
	}
}

func TestRouterAwayAndBack(t *testing.T) {
	for _, address := range []string{"unix:" + filepath.Join(socketFolder(t), "router.sock"), freeAddress(t)} {
		c := newClusterOver(t, &fakeRouter{}, address)
		c.want(c.do("GET", "/health", ""), 503, "not ready")
		r := c.do("POST", "/v1/chat/completions", "{}")
		c.want(r, 503, `"code":"unavailable"`)
		if r.Header.Get("Retry-After") == "" || strings.Contains(r.body, "sock") || strings.Contains(r.body, "127.0.0.1") {
			t.Errorf("%v %s", r.Header, r.body)
		}
		c.want(c.do("GET", "/metrics", ""), 200, "http_requests_total")
		for range 2 { // comes, goes, comes back
			c.router.listen(t, address)
			c.router.setServing(true)
			c.router.on(func(_ *body, out stream) error { return out.Send(plain("{}")) })
			eventually(t, "serves", func() bool { return c.do("POST", "/v1/completions", "{}").StatusCode == 200 })
			eventually(t, "healthy", func() bool { return c.do("GET", "/health", "").StatusCode == 200 })
			c.router.server.Stop()
			eventually(t, "away", func() bool { return c.do("POST", "/v1/completions", "{}").StatusCode == 503 })
			eventually(t, "unhealthy", func() bool { return c.do("GET", "/health", "").StatusCode == 503 })
		}
		eventually(t, "logged", func() bool { return strings.Contains(c.log.String(), "the router serves") })
	}
}

// A healthy gateway has all its connections: the first requests do not meet one that still waits out a failed try.
func TestHealthyMeansEveryConnection(t *testing.T) {
	address := "unix:" + filepath.Join(socketFolder(t), "router.sock")
	c := newClusterOver(t, &fakeRouter{}, address)
	for range 100 { // the pauses of these grow, the probe's hardly
		for _, l := range c.relay.links {
			l.conn.Connect()
		}
		time.Sleep(20 * time.Millisecond)
	}
	c.router.listen(t, address)
	c.router.setServing(true)
	c.router.on(func(_ *body, out stream) error { return out.Send(plain("{}")) })
	eventually(t, "healthy", func() bool { return c.do("GET", "/health", "").StatusCode == 200 })
	for range 2 * len(c.relay.links) {
		c.want(c.do("POST", "/v1/completions", "{}"), 200, "{}")
	}
}

func freeAddress(t *testing.T) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

// A router whose process stands still keeps its sockets open. The stream must end all the same, and say so.
func TestSilentRouter(t *testing.T) {
	router := &fakeRouter{}
	router.listen(t, "127.0.0.1:0")
	gate := newGate(t, router.address)
	c := newClusterOver(t, router, gate.address)
	router.on(func(_ *body, out stream) error {
		_ = out.Send(events("data: 1\n\n"))
		<-out.Context().Done()
		return status.Error(codes.Canceled, "")
	})
	response, err := http.Post(c.url+"/v1/chat/completions", "", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	gate.shut.Store(true) // the head came with the first event
	if data, err := io.ReadAll(response.Body); err != nil || string(data) != "data: 1\n\n"+string(notReady().event()) {
		t.Errorf("%q, %v", data, err)
	}
	if !strings.Contains(c.log.String(), "silent") {
		t.Error("not in the log")
	}
	c.want(c.do("GET", "/health", ""), 503, "")
}

// gate passes bytes on until it is shut; then it holds all that comes.
type gate struct {
	address string
	shut    atomic.Bool
}

func newGate(t *testing.T, target string) *gate {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = listener.Close() })
	g := &gate{address: listener.Addr().String()}
	pump := func(from, to net.Conn) {
		defer to.Close()
		buf := make([]byte, 4096)
		for {
			n, err := from.Read(buf)
			if err != nil {
				return
			}
			if g.shut.Load() {
				continue
			}
			if _, err := to.Write(buf[:n]); err != nil {
				return
			}
		}
	}
	go func() {
		for {
			near, err := listener.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", target)
			if err != nil {
				_ = near.Close()
				continue
			}
			go pump(near, far)
			go pump(far, near)
		}
	}()
	return g
}

// A client that does not read pauses its own stream and nobody else's.
func TestSlowReaderPausesItsStreamAlone(t *testing.T) {
	c := newCluster(t)
	var sent atomic.Int64
	chunk := strings.Repeat("x", 32<<10)
	c.router.on(func(r *body, out stream) error {
		if string(r.GetData()) == "quick" {
			return out.Send(plain("{}"))
		}
		for {
			if err := out.Send(events(chunk)); err != nil {
				return err
			}
			sent.Add(1)
		}
	})
	conn := c.dial()
	_, _ = conn.Write([]byte("POST /v1/chat/completions HTTP/1.1\r\nHost: h\r\nContent-Length: 4\r\n\r\nslow"))
	last := int64(-1)
	eventually(t, "the router is paused", func() bool {
		time.Sleep(100 * time.Millisecond)
		now := sent.Load()
		defer func() { last = now }()
		return now > 0 && now == last
	})
	if total := sent.Load() * int64(len(chunk)); total > 64<<20 {
		t.Errorf("%d bytes are held for a client that reads none", total)
	}
	for range 20 {
		c.want(c.do("POST", "/v1/completions", "quick"), http.StatusOK, "{}")
	}
}
