package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"time"
)

// CannedOptions are the flags of the canned server.
type CannedOptions struct {
	Host            string
	Port            int
	TokensPerSecond float64 // of each stream; 0 = as fast as they can be written
	TTFT            float64 // milliseconds
	Batch           int     // tokens in one event
}

func parseCanned(args []string, errors io.Writer) (CannedOptions, error) {
	var o CannedOptions
	set := flag.NewFlagSet("phalanx-bench-serve canned", flag.ContinueOnError)
	set.SetOutput(errors)
	set.StringVar(&o.Host, "host", "127.0.0.1", "where to listen")
	set.IntVar(&o.Port, "port", 0, "0 = any free one")
	set.Float64Var(&o.TokensPerSecond, "tokens-per-second", 0, "of each stream; 0 = as fast as they can be written")
	set.Float64Var(&o.TTFT, "ttft-ms", 0, "time before the first token")
	set.IntVar(&o.Batch, "tokens-per-event", 1, "tokens in one event")
	err := set.Parse(normalise(args))
	if err == nil && (o.Batch < 1 || o.TokensPerSecond < 0 || o.TTFT < 0) {
		err = fmt.Errorf("--tokens-per-event must be at least 1, the others not negative")
	}
	return o, err
}

// serveCanned listens, prints the ready line and serves until the context ends.
func serveCanned(ctx context.Context, o CannedOptions, out io.Writer) error {
	listener, err := net.Listen("tcp", net.JoinHostPort(o.Host, strconv.Itoa(o.Port)))
	if err != nil {
		return err
	}
	fmt.Fprintf(out, "PHALANX_READY http://%s\n", listener.Addr())
	server := &http.Server{Handler: cannedHandler(o)}
	go func() {
		<-ctx.Done()
		server.Close()
	}()
	if err := server.Serve(listener); err != http.ErrServerClosed {
		return err
	}
	return nil
}

func cannedHandler(o CannedOptions) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /v1/models", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, `{"object":"list","data":[{"id":"canned","object":"model"}]}`)
	})
	mux.HandleFunc("POST /v1/completions", func(w http.ResponseWriter, r *http.Request) { streamCanned(w, r, o, false) })
	mux.HandleFunc("POST /v1/chat/completions", func(w http.ResponseWriter, r *http.Request) { streamCanned(w, r, o, true) })
	return mux
}

// streamCanned writes every event by itself, as a server of tokens does.
func streamCanned(w http.ResponseWriter, r *http.Request, o CannedOptions, chat bool) {
	var body struct {
		MaxTokens           int `json:"max_tokens"`
		MaxCompletionTokens int `json:"max_completion_tokens"`
	}
	if err := json.NewDecoder(r.Body).Decode(&body); err != nil {
		http.Error(w, `{"error":{"message":"not JSON"}}`, http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "text/event-stream")
	flusher := http.NewResponseController(w)
	id := fmt.Sprintf(`"id":"cmpl-%016x","created":%d,"model":"canned"`, os.Getpid(), time.Now().Unix())
	event := []byte(`data: {` + id + `,"object":"text_completion","choices":[{"index":0,"text":" token","finish_reason":null}]}` + "\n\n")
	if chat {
		const delta = `,"object":"chat.completion.chunk","choices":[{"index":0,"delta":{"content":" token"},"finish_reason":null}]}`
		event = []byte(`data: {` + id + delta + "\n\n")
	}
	tokens := max(body.MaxTokens, body.MaxCompletionTokens)
	start := time.Now().Add(time.Duration(o.TTFT * float64(time.Millisecond)))
	for sent := 0; sent < tokens; sent += o.Batch {
		if o.TokensPerSecond > 0 {
			time.Sleep(time.Until(start.Add(time.Duration(float64(sent) / o.TokensPerSecond * float64(time.Second)))))
		} else if sent == 0 {
			time.Sleep(time.Until(start))
		}
		if _, err := w.Write(event); err != nil || flusher.Flush() != nil {
			return
		}
	}
	usage := fmt.Sprintf(`{"prompt_tokens":1,"completion_tokens":%d,"total_tokens":%d}`, tokens, tokens+1)
	fmt.Fprintf(w, "data: {%s,\"choices\":[],\"usage\":%s}\n\ndata: [DONE]\n\n", id, usage)
}
