package main

import (
	"encoding/json"
	"strings"
	"testing"
	"time"
)

func TestLogLines(t *testing.T) {
	var out strings.Builder
	at := time.Date(2026, 1, 2, 3, 4, 5, 6e6, time.UTC)
	fields := []field{{"path", "/a b"}, {"id", "x\n\x1b"}, {"n", int64(3)}, {"ms", 1.5}, {"ok", true}}
	l, _ := newLogger(&out, "info", "text")
	l.now = func() time.Time { return at }
	l.line(levelDebug, "hidden")
	l.line(levelWarning, "two\nlines", fields...)
	want := "2026-01-02T03:04:05.006Z W [gateway] two\\nlines path=\"/a b\" id=x\\n\\x1b n=3 ms=1.5 ok=true\n"
	if out.String() != want {
		t.Errorf("got  %q\nwant %q", out.String(), want)
	}
	out.Reset()
	l, _ = newLogger(&out, "info", "json")
	l.now = func() time.Time { return at }
	l.line(levelError, "m", fields...)
	var line map[string]any
	if err := json.Unmarshal([]byte(out.String()), &line); err != nil || line["id"] != "x\n\x1b" ||
		line["n"] != 3.0 || line["level"] != "error" ||
		line["time"] != "2026-01-02T03:04:05.006Z" || line["process"] != "gateway" || line["ok"] != true {
		t.Errorf("%v: %s", err, out.String())
	}
}
