package main

import (
	"io"
	"strings"
	"testing"
	"testing/iotest"
	"time"
)

const token = `data: {"id":"c","choices":[{"index":0,"text":"a \"choices\":[] b"}]}` + "\n\n"

// feed gives a stream one text a millisecond count.
func feed(s *stream, begin time.Time, pieces map[int]string, order ...int) {
	buffer, used := make([]byte, 1<<16), 0
	for _, at := range order {
		n := copy(buffer[used:], pieces[at])
		used = s.take(buffer, used, used+n, begin.Add(time.Duration(at)*time.Millisecond))
	}
}

func TestTimesAreThoseOfTheEventsWithChoices(t *testing.T) {
	begin := time.Unix(1000, 0)
	var s stream
	feed(&s, begin, map[int]string{
		10: ": ping\n\n",
		30: token,
		50: token[:20], // half an event is no event
		60: token[20:],
		75: token,
		90: `data: {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 5}}` + "\n\n",
		99: "data: [DONE]\n\n",
	}, 10, 30, 50, 60, 75, 90, 99)
	out := s.outcome(Outcome{InputLen: 1}, begin, nil)
	if out.Err != nil {
		t.Fatal(out.Err)
	}
	near(t, "ttft", out.TTFT, 0.030)
	near(t, "latency", out.Latency, 0.075)
	if len(out.ITL) != 2 {
		t.Fatalf("gaps: %v", out.ITL)
	}
	near(t, "first gap", out.ITL[0], 0.030)
	near(t, "second gap", out.ITL[1], 0.015)
	if out.OutputLen != 5 || !out.Counted || out.InputLen != 7 {
		t.Errorf("lengths %d, %d, counted %v: the server's usage wins", out.InputLen, out.OutputLen, out.Counted)
	}
}

func TestAnyCuttingGivesTheSame(t *testing.T) {
	text := ": hello\r\n\r\n" + strings.Repeat(token, 50) + strings.ReplaceAll(token, "\n", "\r\n") +
		`data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":51}}` + "\n\ndata: [DONE]\n\n"
	readers := map[string]io.Reader{"whole": strings.NewReader(text), "bytes": iotest.OneByteReader(strings.NewReader(text)),
		"halves": iotest.HalfReader(strings.NewReader(text)), "with error at the end": iotest.DataErrReader(strings.NewReader(text))}
	for name, reader := range readers {
		var s stream
		if _, err := s.read(reader, make([]byte, 16)); err != nil { // a buffer that has to grow
			t.Fatal(name, err)
		}
		if s.chunks != 51 || len(s.gaps) != 50 || !s.done || s.usage.Completion != 51 || s.err != nil {
			t.Errorf("%s: %d events, %d gaps, done %v, usage %v, %v", name, s.chunks, len(s.gaps), s.done, s.usage, s.err)
		}
	}
}

func TestUsageOnEveryEvent(t *testing.T) {
	var s stream
	text := `data: {"choices":[{"text":"ab"}],"usage":{"completion_tokens":2}}` + "\n\n" +
		`data: {"choices":[{"text":"cd"}],"usage":{"completion_tokens":4}}` + "\n\n" +
		`data: {"choices":[{"text":""}],"usage":null}` + "\n\ndata: [DONE]"
	if _, err := s.read(strings.NewReader(text), make([]byte, 64)); err != nil {
		t.Fatal(err)
	}
	if s.chunks != 3 || s.usage.Completion != 4 || !s.done {
		t.Errorf("%d events, usage %d, done %v", s.chunks, s.usage.Completion, s.done)
	}
}

func TestWhatMakesAStreamFail(t *testing.T) {
	for name, c := range map[string]struct{ text, want string }{
		"error event":    {token + `data: {"error":{"message":"worker lost","type":"server_error"}}` + "\n\ndata: [DONE]\n\n", "worker lost"},
		"no tokens":      {"data: [DONE]\n\n", "no event with choices"},
		"cut":            {token, "without [DONE]"},
		"usage not JSON": {token + `data: {"choices":[],"usage":{"x":}` + "\n\ndata: [DONE]\n\n", "not JSON"},
	} {
		var s stream
		_, err := s.read(strings.NewReader(c.text), make([]byte, 64))
		out := s.outcome(Outcome{}, time.Now(), err)
		if out.Err == nil || !strings.Contains(out.Err.Error(), c.want) {
			t.Errorf("%s: %v", name, out.Err)
		}
	}
}

func near(t *testing.T, what string, got, want float64) {
	t.Helper()
	if got < want-1e-9 || got > want+1e-9 {
		t.Errorf("%s: %v, want %v", what, got, want)
	}
}

func BenchmarkEvents(b *testing.B) {
	text := strings.Repeat(token, 1000)
	b.SetBytes(1000) // events, not bytes: MB/s reads as million events a second
	buffer := make([]byte, 16<<10)
	for b.Loop() {
		var s stream
		buffer, _ = s.read(strings.NewReader(text), buffer)
	}
}
