package main

// log.go: log lines on standard error in the form of services/log.h: text or JSON, with level and process name. A line is one write.

import (
	"fmt"
	"io"
	"strconv"
	"strings"
	"sync"
	"time"
)

type level int

const (
	levelDebug level = iota
	levelInfo
	levelWarning
	levelError
)

var levelNames = []string{"debug", "info", "warning", "error"}

const processName = "gateway"

// field is one named value of a line; the value is a string, an int64, a float64 or a bool.
type field struct {
	key   string
	value any
}

type logger struct {
	level level
	json  bool
	now   func() time.Time

	mu  sync.Mutex
	out io.Writer // guarded by mu
}

// newLogger fails for an unknown level or format, with one sentence.
func newLogger(out io.Writer, levelName, format string) (*logger, error) {
	l := &logger{out: out, json: format == "json", now: time.Now, level: -1}
	for i, name := range levelNames {
		if levelName == name {
			l.level = level(i)
		}
	}
	if l.level < 0 {
		return nil, fmt.Errorf("log level '%s' is not debug, info, warning or error", levelName)
	}
	if format != "text" && format != "json" {
		return nil, fmt.Errorf("log format '%s' is not text or json", format)
	}
	return l, nil
}

func (l *logger) enabled(at level) bool { return at >= l.level }

func (l *logger) line(at level, message string, fields ...field) {
	if !l.enabled(at) {
		return
	}
	buf := make([]byte, 0, 256)
	if l.json {
		buf = l.appendJSON(buf, at, message, fields)
	} else {
		buf = l.appendText(buf, at, message, fields)
	}
	buf = append(buf, '\n')
	l.mu.Lock()
	defer l.mu.Unlock()
	_, _ = l.out.Write(buf) // where would we report it
}

func (l *logger) infof(format string, args ...any) { l.line(levelInfo, fmt.Sprintf(format, args...)) }
func (l *logger) warningf(format string, args ...any) {
	l.line(levelWarning, fmt.Sprintf(format, args...))
}

// Write takes the lines of net/http's own logger: handshakes that failed and the like, which any stranger can cause.
func (l *logger) Write(p []byte) (int, error) {
	l.line(levelDebug, strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

const timeForm = "2006-01-02T15:04:05.000Z"

func (l *logger) appendText(buf []byte, at level, message string, fields []field) []byte {
	buf = l.now().UTC().AppendFormat(buf, timeForm)
	buf = append(buf, ' ', levelNames[at][0]-'a'+'A', ' ', '[')
	buf = append(buf, processName...)
	buf = append(buf, ']', ' ')
	buf = appendEscaped(buf, message)
	for _, f := range fields {
		buf = append(buf, ' ')
		buf = append(buf, f.key...)
		buf = append(buf, '=')
		if text, ok := f.value.(string); !ok {
			buf = appendNumber(buf, f.value)
		} else if text == "" || strings.ContainsAny(text, ` ="`) {
			buf = appendJSONString(buf, text)
		} else {
			buf = appendEscaped(buf, text)
		}
	}
	return buf
}

func (l *logger) appendJSON(buf []byte, at level, message string, fields []field) []byte {
	buf = append(buf, `{"time":"`...)
	buf = l.now().UTC().AppendFormat(buf, timeForm)
	buf = append(buf, `","level":"`...)
	buf = append(buf, levelNames[at]...)
	buf = append(buf, `","process":"`+processName+`","message":`...)
	buf = appendJSONString(buf, message)
	for _, f := range fields {
		buf = append(buf, ',')
		buf = appendJSONString(buf, f.key)
		buf = append(buf, ':')
		if text, ok := f.value.(string); ok {
			buf = appendJSONString(buf, text)
		} else {
			buf = appendNumber(buf, f.value)
		}
	}
	return append(buf, '}')
}

func appendNumber(buf []byte, value any) []byte {
	switch v := value.(type) {
	case int64:
		return strconv.AppendInt(buf, v, 10)
	case float64:
		return strconv.AppendFloat(buf, v, 'g', 6, 64)
	case bool:
		return strconv.AppendBool(buf, v)
	default:
		return fmt.Append(buf, v)
	}
}

// appendEscaped keeps a line a line, and a terminal as it is, whatever a client put into the text.
func appendEscaped(buf []byte, text string) []byte {
	const hex = "0123456789abcdef"
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case c == '\n':
			buf = append(buf, `\n`...)
		case c < 0x20 || c == 0x7f:
			buf = append(buf, '\\', 'x', hex[c>>4], hex[c&15])
		default:
			buf = append(buf, c)
		}
	}
	return buf
}
