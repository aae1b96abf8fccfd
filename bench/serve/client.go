package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"os"
	"sync"
	"time"
)

// Outcome is what one request came to. Times are seconds from its start.
type Outcome struct {
	Started   float64 // seconds after the run's start
	TTFT      float64
	Latency   float64 // to the last event with choices
	ITL       []float64
	InputLen  int
	OutputLen int
	Counted   bool // OutputLen is the server's own count, not a count of events
	Err       error
}

type client struct {
	http    *http.Client
	options Options
	model   string
	buffers sync.Pool
}

func newClient(o Options) *client {
	if o.APIKey == "" {
		o.APIKey = os.Getenv("OPENAI_API_KEY")
	}
	transport := &http.Transport{
		DialContext:         (&net.Dialer{Timeout: 30 * time.Second, KeepAlive: 30 * time.Second}).DialContext,
		MaxIdleConnsPerHost: 1 << 16,
		DisableCompression:  true,
		ReadBufferSize:      16 << 10,
	}
	return &client{http: &http.Client{Transport: transport}, options: o, model: o.Model,
		buffers: sync.Pool{New: func() any { b := make([]byte, 16<<10); return &b }}}
}

func (c *client) newRequest(ctx context.Context, method, path string, body []byte) (*http.Request, error) {
	request, err := http.NewRequestWithContext(ctx, method, c.options.BaseURL+path, bytes.NewReader(body))
	if err != nil {
		return nil, err
	}
	request.Header.Set("Content-Type", "application/json")
	if c.options.APIKey != "" {
		request.Header.Set("Authorization", "Bearer "+c.options.APIKey)
	}
	return request, nil
}

// waitReady asks for the models until there is one, and returns its name. When a model was named, any answer below 500 will do:
// not every server lists its models.
func (c *client) waitReady(ctx context.Context) (string, error) {
	until := time.Now().Add(time.Duration(c.options.ReadyWait * float64(time.Second)))
	for {
		name, err := c.firstModel(ctx)
		if err == nil {
			return name, nil
		}
		if time.Now().After(until) || ctx.Err() != nil {
			return "", fmt.Errorf("%s/v1/models: %w", c.options.BaseURL, err)
		}
		time.Sleep(100 * time.Millisecond)
	}
}

func (c *client) firstModel(ctx context.Context) (string, error) {
	request, err := c.newRequest(ctx, http.MethodGet, "/v1/models", nil)
	if err != nil {
		return "", err
	}
	response, err := c.http.Do(request)
	if err != nil {
		return "", err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(io.LimitReader(response.Body, 1<<20))
	if err != nil {
		return "", err
	}
	if c.model != "" && response.StatusCode < 500 {
		return c.model, nil
	}
	if response.StatusCode != http.StatusOK {
		return "", fmt.Errorf("HTTP %d: %s", response.StatusCode, errorText(body))
	}
	var list struct {
		Data []struct {
			ID string `json:"id"`
		} `json:"data"`
	}
	if err := json.Unmarshal(body, &list); err != nil {
		return "", err
	}
	if len(list.Data) == 0 {
		return "", errors.New("the server has no model")
	}
	return list.Data[0].ID, nil
}

// body is the JSON of a request, with the fields that vLLM's client sends.
func (c *client) body(r Request) ([]byte, error) {
	fields := map[string]any{"model": c.model, "stream": true, "stream_options": map[string]any{"include_usage": true},
		"temperature": c.options.Temperature}
	if c.options.Backend == "openai-chat" {
		fields["messages"] = []map[string]string{{"role": "user", "content": r.Text}}
		fields["max_completion_tokens"] = r.OutputLen
	} else {
		fields["prompt"] = r.Text
		if len(r.IDs) > 0 {
			fields["prompt"] = r.IDs
		}
		fields["max_tokens"] = r.OutputLen
	}
	if c.options.IgnoreEOS {
		fields["ignore_eos"] = true
	}
	maps.Copy(fields, c.options.ExtraBody)
	return json.Marshal(fields)
}

// do runs one request. The clock starts when the request is handed to the connection.
func (c *client) do(ctx context.Context, r Request, body []byte) Outcome {
	out := Outcome{InputLen: r.InputLen}
	request, err := c.newRequest(ctx, http.MethodPost, c.options.Endpoint, body)
	if err != nil {
		out.Err = err
		return out
	}
	start := time.Now()
	response, err := c.http.Do(request)
	if err != nil {
		out.Err = err
		return out
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		out.Err = fmt.Errorf("HTTP %d: %s", response.StatusCode, errorText(text))
		return out
	}
	s := stream{gaps: make([]float64, 0, r.OutputLen)}
	buffer := c.buffers.Get().(*[]byte)
	*buffer, err = s.read(response.Body, *buffer)
	c.buffers.Put(buffer)
	return s.outcome(out, start, err)
}

func (s *stream) outcome(out Outcome, start time.Time, err error) Outcome {
	switch {
	case s.err != nil:
		out.Err = s.err
	case err != nil:
		out.Err = err
	case s.chunks == 0:
		out.Err = errors.New("the stream had no event with choices")
	case !s.done:
		out.Err = errors.New("the stream ended without [DONE]")
	}
	if out.Err != nil {
		return out
	}
	out.TTFT, out.Latency, out.ITL = s.first.Sub(start).Seconds(), s.last.Sub(start).Seconds(), s.gaps
	out.OutputLen, out.Counted = s.chunks, s.usage.Completion > 0
	if out.Counted {
		out.OutputLen = s.usage.Completion
	}
	if s.usage.Prompt > 0 {
		out.InputLen = s.usage.Prompt
	}
	return out
}
