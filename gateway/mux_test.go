package main

import (
	"bufio"
	"io"
	"net/http"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
)

func TestEventsPassByteForByteAndAtOnce(t *testing.T) {
	c := newCluster(t)
	chunks := []string{"data: {\"a\":\"é\\n\"}\n\n", ": ping\n\n", "data: x", "\n\n", "data: [DONE]\n\n"}
	next := make(chan bool, 1)
	c.router.on(func(_ *body, out stream) error {
		for _, chunk := range chunks {
			<-next
			if err := out.Send(events(chunk)); err != nil {
				return err
			}
		}
		return nil
	})
	next <- true
	response, err := http.Post(c.url+"/v1/chat/completions", "application/json", strings.NewReader("{}"))
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	if got := response.Header.Get("Content-Type"); got != "text/event-stream" {
		t.Errorf("content type '%s'", got)
	}
	for i, chunk := range chunks { // each is here before the router may send the next
		got := make([]byte, len(chunk))
		if _, err := io.ReadFull(response.Body, got); err != nil || string(got) != chunk {
			t.Fatalf("chunk %d: %q, %v", i, got, err)
		}
		if i+1 < len(chunks) {
			next <- true
		}
	}
	if rest, err := io.ReadAll(response.Body); err != nil || len(rest) != 0 {
		t.Errorf("rest %q, %v", rest, err)
	}
}

func TestRoutes(t *testing.T) {
	c := newCluster(t)
	c.router.on(func(r *body, out stream) error { return out.Send(plain(`{"got":"` + string(r.GetData()) + `"}`)) })
	for _, path := range []string{"/v1/chat/completions", "/v1/completions", "/tokenize", "/detokenize"} {
		c.want(c.do("POST", path, "raw bytes", "Content-Type", "application/x-www-form-urlencoded"), 200, `{"got":"raw bytes"}`)
	}
	c.want(c.do("GET", "/v1/models", ""), 200, `"object":"list"`)
	c.want(c.do("GET", "/version", ""), 200, `{"version":"1.2.3"}`)
	c.want(c.do("GET", "/version", "a body that nobody asked for"), 200, "1.2.3")
	for path, id := range map[string]string{"demo": "demo", "org/name": "org/name", "org%2Fname": "org/name", "a/b/c": "a/b/c",
		"qwen:7b": "qwen:7b", "50%25": "50%", "a%252Fb": "a%2Fb", "a%20b": "a b"} {
		c.want(c.do("GET", "/v1/models/"+path, ""), 200, `{"id":"`+id+`"}`)
	}
}

func TestUnknownPathsAndMethods(t *testing.T) {
	c := newCluster(t)
	for _, path := range []string{"/", "/v1", "/v1/chat", "/chat/completions", "/v1/chat/completions/", "//v1/models", "/V1/models",
		"/v1/embeddings", "/phalanx.v1.OpenAI/Metrics", "/healthz"} {
		for _, method := range []string{"GET", "POST", "DELETE"} {
			c.want(c.do(method, path, ""), 404, "This path is not served")
		}
	}
	for _, row := range []struct{ method, path, allow string }{
		{"GET", "/v1/chat/completions", "POST, OPTIONS"}, {"PUT", "/v1/completions", "POST, OPTIONS"}, {"POST", "/v1/models", "GET, OPTIONS"},
		{"DELETE", "/v1/models/a/b", "GET, OPTIONS"}, {"POST", "/health", "GET, HEAD, OPTIONS"}, {"POST", "/metrics", "GET, HEAD, OPTIONS"},
		{"OPTIONS", "/v1/models", "GET, OPTIONS"},
	} {
		r := c.do(row.method, row.path, "")
		c.want(r, 405, "does not take that method")
		if got := r.Header.Get("Allow"); got != row.allow {
			t.Errorf("%s %s: allow '%s', want '%s'", row.method, row.path, got, row.allow)
		}
	}
	c.want(c.do("POST", "/v1/models", "", "X-HTTP-Method-Override", "GET", "Content-Type", "application/x-www-form-urlencoded"), 405, "")
}

func TestTheRouterChoosesTheStatus(t *testing.T) {
	c := newCluster(t)
	for _, code := range []string{"200", "400", "404", "429", "501", "503"} {
		c.router.on(func(_ *body, out stream) error {
			md := metadata.Pairs("x-http-code", code, "retry-after", "7", "x-should-retry", "false", "other", "x")
			if err := out.SendHeader(md); err != nil {
				return err
			}
			return out.Send(plain(`{"error":{"message":"m","type":"t","param":null,"code":null}}`))
		})
		r := c.do("POST", "/v1/chat/completions", "{}")
		if r.Status[:3] != code || r.Header.Get("Retry-After") != "7" || r.Header.Get("X-Should-Retry") != "false" {
			t.Errorf("%s: %s %v", code, r.Status, r.Header)
		}
		if r.Header.Get("Content-Type") != "application/json" || r.Header.Get("Other") != "" || !strings.Contains(r.body, `"m"`) {
			t.Errorf("%s: %v %s", code, r.Header, r.body)
		}
	}
	c.router.on(func(_ *body, out stream) error {
		_ = out.SendHeader(metadata.Pairs("x-http-code", "teapot"))
		return out.Send(plain("{}"))
	})
	c.want(c.do("POST", "/v1/chat/completions", "{}"), 500, internalMessage)
}

func TestStatusBeforeTheFirstMessage(t *testing.T) {
	c := newCluster(t)
	for _, row := range []struct {
		code codes.Code
		text string
		http int
		want string
	}{
		{codes.InvalidArgument, "temperature is wrong", 400, `"temperature is wrong"`},
		{codes.Aborted, "no 409", 400, "no 409"},
		{codes.Internal, "/a/path", 500, internalMessage},
		{codes.Unavailable, "dial unix /a/path", 503, "not ready"},
		{codes.ResourceExhausted, "Received message larger than max (5 vs. 4)", 413, "too large"},
		{codes.ResourceExhausted, "busy", 429, "rate_limit_exceeded"},
		{codes.Unimplemented, "not built", 501, "not_implemented"},
		{codes.DeadlineExceeded, "late", 504, "timeout"},
	} {
		c.router.on(func(*body, stream) error { return status.Error(row.code, row.text) })
		r := c.do("POST", "/v1/completions", "{}")
		c.want(r, row.http, row.want)
		if strings.Contains(r.body, "/a/path") {
			t.Errorf("leaks: %s", r.body)
		}
		if (row.http == 429 || row.http == 503) != (r.Header.Get("Retry-After") != "") {
			t.Errorf("%d: retry-after '%s'", row.http, r.Header.Get("Retry-After"))
		}
	}
	c.router.on(func(*body, stream) error { return nil })
	if r := c.do("POST", "/v1/completions", "{}"); r.StatusCode != 200 || r.body != "" {
		t.Errorf("empty stream: %d '%s'", r.StatusCode, r.body)
	}
}

func TestStreamThatFailsInTheMiddle(t *testing.T) {
	c := newCluster(t)
	c.router.on(func(_ *body, out stream) error {
		_ = out.Send(events("data: 1\n\n"))
		return status.Error(codes.Unavailable, "gone")
	})
	r := c.do("POST", "/v1/chat/completions", "{}")
	want := "data: 1\n\n" + string(notReady().event())
	if r.StatusCode != 200 || r.body != want || !strings.HasSuffix(r.body, "\n\ndata: [DONE]\n\n") {
		t.Errorf("got %q, want %q", r.body, want)
	}
	c.router.on(func(_ *body, out stream) error {
		_ = out.Send(plain(`{"half":`))
		return status.Error(codes.Internal, "broken")
	})
	response, err := http.Post(c.url+"/v1/chat/completions", "", strings.NewReader("{}"))
	if err == nil { // the head may or may not be out when the connection is cut
		defer response.Body.Close()
		if data, err := io.ReadAll(response.Body); err == nil {
			t.Errorf("half a reply looks whole: %q", data)
		}
	}
}

func TestRequestIDs(t *testing.T) {
	c := newCluster(t)
	seen := make(chan metadata.MD, 1)
	c.router.on(func(_ *body, out stream) error {
		seen <- incoming(out)
		return out.Send(plain("{}"))
	})
	for _, id := range []string{"abc-123", strings.Repeat("i", requestIDMax)} {
		r := c.do("POST", "/v1/completions", "{}", "X-Request-Id", id)
		if got := (<-seen)["x-request-id"]; len(got) != 1 || got[0] != id || r.Header.Get("X-Request-Id") != id {
			t.Errorf("sent %s, router %v, client %s", id, got, r.Header.Get("X-Request-Id"))
		}
	}
	made := map[string]bool{}
	for _, id := range []string{"", "has space", "quo\"te", strings.Repeat("i", requestIDMax+1), "é"} {
		r := c.do("POST", "/v1/completions", "{}", "X-Request-Id", id)
		got := r.Header.Get("X-Request-Id")
		if in := (<-seen)["x-request-id"]; len(got) != 32 || len(in) != 1 || in[0] != got || made[got] {
			t.Errorf("%q became %q, router %v", id, got, in)
		}
		made[got] = true
	}
}

func TestTheRouterSeesNoHeaders(t *testing.T) {
	c := newCluster(t, func(o *options) { o.apiKeys = []string{"secret-key"} })
	seen := make(chan metadata.MD, 1)
	c.router.on(func(_ *body, out stream) error {
		seen <- incoming(out)
		return out.Send(plain("{}"))
	})
	c.want(c.do("POST", "/v1/completions", "{}", "Authorization", "Bearer secret-key", "Grpc-Metadata-X-Tenant", "t", "Cookie", "secret-key",
		"X-Forwarded-For", "secret-key", "X-Forwarded-Host", "\xff", "Grpc-Timeout", "1n", "X-Tenant", "t",
		"Traceparent", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"), 200, "{}")
	md := <-seen
	for name, values := range md {
		switch name {
		case ":authority", "content-type", "user-agent", "x-request-id", "traceparent", "grpc-accept-encoding":
		default:
			t.Errorf("metadata %s: %v", name, values)
		}
	}
	if md["traceparent"] == nil {
		t.Error("no traceparent")
	}
	if text := c.log.String(); strings.Contains(text, "secret-key") || !strings.Contains(text, "/v1/completions") {
		t.Errorf("log: %s", text)
	}
}

func TestBigReplies(t *testing.T) {
	c := newCluster(t)
	big := strings.Repeat("0123456789abcdef", 6<<20/16)
	c.router.on(func(_ *body, out stream) error { return out.Send(plain(big)) })
	if r := c.do("POST", "/v1/completions", "{}"); r.StatusCode != 200 || r.body != big {
		t.Errorf("HTTP %d, %d bytes of %d", r.StatusCode, len(r.body), len(big))
	}
	c.router.on(func(r *body, out stream) error { return out.Send(events(string(r.GetData()))) })
	if r := c.do("POST", "/v1/completions", big); r.StatusCode != 200 || r.body != big {
		t.Errorf("echo: HTTP %d, %d bytes of %d", r.StatusCode, len(r.body), len(big))
	}
}

func TestManyStreamsAtOnce(t *testing.T) {
	c := newCluster(t)
	c.router.on(func(r *body, out stream) error {
		for range 200 {
			if err := out.Send(events("data: " + string(r.GetData()) + "\n\n")); err != nil {
				return err
			}
		}
		return nil
	})
	const clients = 32
	failures := make(chan string, clients)
	for i := range clients {
		go func() {
			name := strings.Repeat(string(rune('A'+i)), i+1)
			response, err := http.Post(c.url+"/v1/chat/completions", "", strings.NewReader(name))
			if err != nil {
				failures <- err.Error()
				return
			}
			defer response.Body.Close()
			lines := 0
			for scan := bufio.NewScanner(response.Body); scan.Scan(); {
				if text := scan.Text(); text == "data: "+name {
					lines++
				} else if text != "" {
					failures <- "mixed up: " + text
					return
				}
			}
			if lines != 200 {
				failures <- name + ": lines are missing"
				return
			}
			failures <- ""
		}()
	}
	for range clients {
		if failure := <-failures; failure != "" {
			t.Error(failure)
		}
	}
}
