package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// serve starts a server over one handler of completions and returns options that point to it.
func serve(t *testing.T, handler http.HandlerFunc, args ...string) Options {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/models", func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"data":[{"id":"m"}]}`) })
	mux.HandleFunc("/", handler)
	server := httptest.NewServer(mux)
	t.Cleanup(server.Close)
	return options(t, append([]string{"--base-url", server.URL, "--random-input-len", "4", "--random-output-len", "3"}, args...)...)
}

func send(w http.ResponseWriter, text string) {
	io.WriteString(w, text)
	w.(http.Flusher).Flush()
}

func runOne(t *testing.T, o Options) Outcome {
	t.Helper()
	o.NumPrompts = 1
	outcomes, _ := newClient(o).runAll(context.Background(), requests(t, o), []float64{0}, 0)
	return outcomes[0]
}

func TestDelaysShowInTheRightMetric(t *testing.T) {
	const first, gap, after = 30 * time.Millisecond, 20 * time.Millisecond, 50 * time.Millisecond
	out := runOne(t, serve(t, func(w http.ResponseWriter, r *http.Request) {
		time.Sleep(first)
		send(w, token)
		for range 2 {
			time.Sleep(gap)
			send(w, token)
		}
		time.Sleep(after) // before the usage event: in no metric
		send(w, `data: {"choices":[],"usage":{"prompt_tokens":4,"completion_tokens":3}}`+"\n\ndata: [DONE]\n\n")
	}))
	if out.Err != nil {
		t.Fatal(out.Err)
	}
	if out.TTFT < first.Seconds() || len(out.ITL) != 2 || out.ITL[0]+out.ITL[1] < 2*gap.Seconds()*0.9 {
		t.Errorf("ttft %v, gaps %v", out.TTFT, out.ITL)
	}
	near(t, "latency is ttft and the gaps", out.Latency, out.TTFT+out.ITL[0]+out.ITL[1])
	if out.OutputLen != 3 || !out.Counted {
		t.Errorf("%d tokens", out.OutputLen)
	}
}

func TestRequestBodies(t *testing.T) {
	for backend, want := range map[string]string{
		"openai":      `{"ignore_eos":true,"max_tokens":3,"model":"name","prompt":[IDS],"stream":true,"stream_options":{"include_usage":true},"temperature":0,"top_k":5}`,
		"openai-chat": `{"ignore_eos":true,"max_completion_tokens":3,"messages":[{"content":"TEXT","role":"user"}],"model":"name","stream":true,"stream_options":{"include_usage":true},"temperature":0,"top_k":5}`,
	} {
		var body, key, path string
		o := serve(t, func(w http.ResponseWriter, r *http.Request) {
			text, _ := io.ReadAll(r.Body)
			body, key, path = string(text), r.Header.Get("Authorization"), r.URL.Path
			send(w, token+"data: [DONE]\n\n")
		}, "--backend", backend, "--model", "name", "--ignore-eos", "--api-key", "secret", "--extra-body", `{"top_k": 5}`)
		if out := runOne(t, o); out.Err != nil || out.Counted || out.OutputLen != 1 {
			t.Errorf("%s: %+v", backend, out)
		}
		o.NumPrompts = 1
		made := requests(t, o)[0]
		ids, _ := json.Marshal(made.IDs)
		want = strings.NewReplacer("[IDS]", string(ids), "TEXT", made.Text).Replace(want)
		if body != want || key != "Bearer secret" || path != o.Endpoint {
			t.Errorf("%s %s %q:\n%s\nwant\n%s", backend, path, key, body, want)
		}
	}
}

func TestErrorsAreCounted(t *testing.T) {
	var mutex sync.Mutex
	number := 0
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mutex.Lock()
		number++
		mine := number
		mutex.Unlock()
		switch mine % 4 {
		case 0:
			w.WriteHeader(429)
			io.WriteString(w, `{"error":{"message":"too many"}}`)
		case 1:
			send(w, token)
			panic(http.ErrAbortHandler) // the connection breaks in mid-stream
		case 2:
			send(w, token+`data: {"error":{"message":"lost"}}`+"\n\n")
		case 3:
			send(w, token+"data: [DONE]\n\n")
		}
	}, "--num-prompts", "20", "--max-concurrency", "3")
	outcomes, _ := newClient(o).runAll(context.Background(), requests(t, o), make([]float64, 20), 3)
	s := summarise(outcomes, 1, o)
	if s.Completed != 5 || s.Failed != 15 {
		t.Errorf("%d completed, %d failed", s.Completed, s.Failed)
	}
	texts := map[string]int{}
	for _, out := range outcomes {
		if out.Err != nil {
			texts[out.Err.Error()]++
		}
	}
	if texts["HTTP 429: too many"] != 5 || texts["error event: lost"] != 5 {
		t.Errorf("%v", texts)
	}
}

func TestClosedLoopKeepsToItsLimit(t *testing.T) {
	var mutex sync.Mutex
	now, peak := 0, 0
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		mutex.Lock()
		now++
		peak = max(peak, now)
		mutex.Unlock()
		time.Sleep(2 * time.Millisecond)
		mutex.Lock()
		now--
		mutex.Unlock()
		send(w, token+"data: [DONE]\n\n")
	}, "--num-prompts", "40", "--max-concurrency", "5")
	outcomes, _ := newClient(o).runAll(context.Background(), requests(t, o), make([]float64, 40), o.MaxConcurrency)
	if s := summarise(outcomes, 1, o); s.Completed != 40 || peak > 5 || peak < 2 {
		t.Errorf("%d completed, %d in flight", s.Completed, peak)
	}
}

func TestOpenLoopSendsWhenDue(t *testing.T) {
	o := serve(t, func(w http.ResponseWriter, r *http.Request) { send(w, token+"data: [DONE]\n\n") }, "--num-prompts", "10", "--request-rate", "100")
	due := arrivals(10, o.RequestRate, o.Burstiness, o.Seed)
	outcomes, duration := newClient(o).runAll(context.Background(), requests(t, o), due, 0)
	for i, out := range outcomes {
		if out.Err != nil || out.Started < due[i] {
			t.Errorf("request %d: due at %v, began at %v: %v", i, due[i], out.Started, out.Err)
		}
	}
	if duration < 0.1 {
		t.Errorf("10 requests at 100 a second took %v s", duration)
	}
}

func TestInterruptEndsTheRun(t *testing.T) {
	o := serve(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body) // only then does the server notice that the client left
		<-r.Context().Done()
	}, "--num-prompts", "4")
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(20*time.Millisecond, cancel)
	outcomes, _ := newClient(o).runAll(ctx, requests(t, o), []float64{0, 0, 1e6, 1e6}, 0)
	for i, out := range outcomes {
		if out.Err == nil {
			t.Errorf("request %d succeeded", i)
		}
	}
}

// The whole program against its own canned server.
func TestEndToEnd(t *testing.T) {
	for _, backend := range []string{"openai", "openai-chat"} {
		ctx, cancel := context.WithCancel(context.Background())
		reader, writer := io.Pipe()
		ended := make(chan error, 1)
		go func() { ended <- serveCanned(ctx, CannedOptions{Host: "127.0.0.1", Batch: 4}, writer) }()
		var address string
		if _, err := fmt.Fscanf(reader, "PHALANX_READY %s\n", &address); err != nil {
			t.Fatal(err)
		}
		folder := t.TempDir()
		err := command(ctx, []string{"--base-url", address, "--backend", backend, "--num-prompts", "30", "--max-concurrency", "3", "--random-input-len", "5",
			"--random-output-len", "10", "--num-warmups", "2", "--save-result", "--result-dir", folder, "--result-filename", "out.json"}, io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		text, err := os.ReadFile(filepath.Join(folder, "out.json"))
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Contains(text, []byte(`"total_output_tokens": 300`)) || !bytes.Contains(text, []byte(`"model_id": "canned"`)) {
			t.Errorf("several tokens in one event are not counted by usage: %s", text)
		}
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
}

func TestNoServer(t *testing.T) {
	if err := command(context.Background(), []string{"--base-url", "http://127.0.0.1:1", "--ready-check-timeout-sec", "0"}, io.Discard); err == nil {
		t.Error("nobody listens, and no error")
	}
}

func TestWaitReady(t *testing.T) {
	status := http.StatusOK
	mux := http.NewServeMux()
	mux.HandleFunc("/v1/models", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(status)
		io.WriteString(w, `{"data":[{"id":"first"},{"id":"second"}]}`)
	})
	server := httptest.NewServer(mux)
	defer server.Close()
	args := []string{"--base-url", server.URL, "--ready-check-timeout-sec", "0"}
	if name, err := newClient(options(t, args...)).waitReady(context.Background()); err != nil || name != "first" {
		t.Errorf("%q, %v", name, err)
	}
	status = http.StatusNotFound
	if name, err := newClient(options(t, args...)).waitReady(context.Background()); err == nil {
		t.Errorf("no list of models, and no error: %q", name)
	}
	if name, err := newClient(options(t, append(args, "--model", "mine")...)).waitReady(context.Background()); err != nil || name != "mine" {
		t.Errorf("a named model needs no list: %q, %v", name, err)
	}
	status = http.StatusServiceUnavailable
	if _, err := newClient(options(t, append(args, "--model", "mine")...)).waitReady(context.Background()); err == nil {
		t.Error("the server is not ready, and no error")
	}
}
