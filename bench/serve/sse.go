package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Usage is the server's own count.
type Usage struct {
	Prompt     int `json:"prompt_tokens"`
	Completion int `json:"completion_tokens"`
}

// stream reads one SSE body. An event is looked at as bytes: only the usage and error events, one of each a request, are decoded.
type stream struct {
	first, last time.Time // of the events with choices
	gaps        []float64 // seconds between them
	chunks      int
	usage       Usage
	done        bool  // [DONE] was there
	err         error // what an error event said
}

var (
	dataPrefix = []byte("data:")
	doneText   = []byte("[DONE]")
	choicesKey = []byte(`"choices":`)
	usageKey   = []byte(`"usage":`)
	errorKey   = []byte(`"error":`)
)

// read takes events until the end of the body. `buffer` is working space and grows with the longest line; it is returned.
// All events of one read have one time: they came together.
func (s *stream) read(body io.Reader, buffer []byte) ([]byte, error) {
	used := 0
	for {
		if used == len(buffer) {
			buffer = append(buffer, make([]byte, max(len(buffer), 4096))...)
		}
		n, err := body.Read(buffer[used:])
		if n > 0 {
			used = s.take(buffer, used, used+n, time.Now())
		}
		if err == io.EOF {
			if used > 0 {
				s.line(buffer[:used], time.Now())
			}
			return buffer, nil
		}
		if err != nil {
			return buffer, err
		}
	}
}

// take consumes the whole lines of buffer[:end], of which buffer[:old] has no line end, and moves the rest to the front.
func (s *stream) take(buffer []byte, old, end int, now time.Time) int {
	begin, search := 0, old
	for {
		at := bytes.IndexByte(buffer[search:end], '\n')
		if at < 0 {
			break
		}
		if at += search; at > begin {
			s.line(buffer[begin:at], now)
		}
		begin, search = at+1, at+1
	}
	return copy(buffer, buffer[begin:end])
}

func (s *stream) line(line []byte, now time.Time) {
	data, found := bytes.CutPrefix(line, dataPrefix)
	if !found {
		return // a comment, an event name, an empty line
	}
	data = bytes.TrimSpace(data)
	if bytes.Equal(data, doneText) {
		s.done = true
		return
	}
	counts := opens(data, choicesKey, '[', ']')
	if counts {
		if s.chunks == 0 {
			s.first = now
		} else {
			s.gaps = append(s.gaps, now.Sub(s.last).Seconds())
		}
		s.last = now
		s.chunks++
	}
	if opens(data, usageKey, '{', '}') || (!counts && bytes.Contains(data, errorKey)) {
		s.decode(data)
	}
}

// opens tells whether `key` is in the text and followed by `open` that is not closed at once. A key inside a string would have
// escaped quotes, so it is never mistaken for one.
func opens(data, key []byte, open, close byte) bool {
	at := bytes.Index(data, key)
	if at < 0 {
		return false
	}
	rest := bytes.TrimLeft(data[at+len(key):], " ")
	if len(rest) == 0 || rest[0] != open {
		return false
	}
	rest = bytes.TrimLeft(rest[1:], " ")
	return len(rest) > 0 && rest[0] != close
}

func (s *stream) decode(data []byte) {
	var event struct {
		Usage *Usage          `json:"usage"`
		Error json.RawMessage `json:"error"`
	}
	if err := json.Unmarshal(data, &event); err != nil {
		s.err = fmt.Errorf("an event is not JSON: %w", err)
		return
	}
	if event.Usage != nil {
		s.usage = *event.Usage
	}
	if len(event.Error) > 0 && string(event.Error) != "null" {
		s.err = errors.New("error event: " + errorText(data))
	}
}

// errorText is the message of an OpenAI error body, or the body.
func errorText(body []byte) string {
	var shape struct {
		Error struct {
			Message string `json:"message"`
		} `json:"error"`
	}
	if json.Unmarshal(body, &shape) == nil && shape.Error.Message != "" {
		return shape.Error.Message
	}
	return string(bytes.TrimSpace(body[:min(len(body), 300)]))
}
