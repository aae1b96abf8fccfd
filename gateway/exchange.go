package main

// exchange.go: one request and its reply: what has been written, the one place where a reply is ended, and the line about it in the log.

import (
	"context"
	"net/http"
	"time"
)

// exchange is the http.ResponseWriter that all handlers see. One goroutine uses it, that of the request.
type exchange struct {
	w       http.ResponseWriter
	control *http.ResponseController
	request *http.Request
	server  *server
	id      string
	route   string
	start   time.Time

	status       int   // 0 = nothing has been sent
	bytes        int64 // of the body
	streaming    bool  // an event stream: each chunk goes out at once
	ended        bool  // the reply is whole: what comes after is dropped
	cut          bool  // the reply can not be made whole: the connection must end with it
	deadline     time.Time
	bodyHeld     int64 // of server.budget
	bodyRefusal  *refusal
	flusher      interface{ FlushError() error }
	perWriteTime bool // HTTP/2: a deadline also fires between two writes, so it is lifted after each
}

type exchangeKey struct{}

func exchangeOf(ctx context.Context) *exchange {
	e, _ := ctx.Value(exchangeKey{}).(*exchange)
	return e
}

func newExchange(s *server, w http.ResponseWriter, r *http.Request) *exchange {
	e := &exchange{w: w, control: http.NewResponseController(w), request: r, server: s, start: time.Now()}
	e.flusher, _ = w.(interface{ FlushError() error })
	e.perWriteTime = r.ProtoMajor >= 2
	if !e.perWriteTime {
		_ = e.control.SetWriteDeadline(time.Time{}) // the last request's
	}
	return e
}

func (e *exchange) Header() http.Header { return e.w.Header() }

func (e *exchange) WriteHeader(code int) {
	if e.status != 0 || e.ended {
		return
	}
	e.status = code
	e.w.WriteHeader(code)
}

func (e *exchange) Write(p []byte) (int, error) {
	if e.ended || len(p) == 0 {
		return len(p), nil
	}
	if e.status == 0 {
		e.WriteHeader(http.StatusOK)
	}
	e.setDeadline()
	n, err := e.w.Write(p)
	e.bytes += int64(n)
	return n, err
}

// FlushError sends what was written, if the reply is an event stream. Any other reply is one message, and leaves when it is whole.
func (e *exchange) FlushError() error {
	if !e.streaming || e.flusher == nil {
		return nil
	}
	err := e.flusher.FlushError()
	if e.perWriteTime && err == nil {
		_ = e.control.SetWriteDeadline(time.Time{})
	}
	return err
}

func (e *exchange) Flush() { _ = e.FlushError() }

func (e *exchange) setDeadline() {
	now := time.Now()
	if !e.perWriteTime && now.Sub(e.deadline) < writeRefresh {
		return
	}
	e.deadline = now
	_ = e.control.SetWriteDeadline(now.Add(writeTimeout + writeRefresh))
}

// refuse ends the reply with a failure, in the form that its state allows: as the whole reply, as the last events of a stream, or, in
// the middle of anything else, by cutting the connection, because a client must not take half a reply for a whole one.
func (e *exchange) refuse(no refusal) {
	switch {
	case e.ended:
		return
	case e.status == 0:
		no.writeHead(e)
		_, _ = e.Write(no.body())
	case e.streaming:
		if _, err := e.Write(no.event()); err == nil {
			_ = e.FlushError()
		}
	default:
		e.cut = true
	}
	e.ended = true
}

// finish runs once, after the handler. A panic of a handler is our own bug and costs its request alone.
func (e *exchange) finish() {
	if problem := recover(); problem != nil && problem != http.ErrAbortHandler {
		e.server.log.line(levelError, "panic while serving a request", field{"panic", problem}, field{"id", e.id})
		e.refuse(internal())
	}
	e.server.budget.held.Add(-e.bodyHeld)
	if e.status == 0 { // a handler that wrote nothing at all
		e.WriteHeader(http.StatusOK)
	}
	took := time.Since(e.start)
	e.server.metrics.observe(e.route, e.request.Method, e.status, took)
	e.logLine(took)
	if e.cut {
		panic(http.ErrAbortHandler)
	}
}

const loggedPathMax = 256

// logLine writes the one line about this request. The query and all headers stay out: both may carry secrets.
func (e *exchange) logLine(took time.Duration) {
	at := levelInfo
	// What probes find out is logged when it changes (relay.go).
	if isProbe(e.request.URL.Path) || e.status < 400 && e.route == metricsPath {
		at = levelDebug
	}
	if !e.server.log.enabled(at) {
		return
	}
	path := e.request.URL.Path
	if len(path) > loggedPathMax {
		path = path[:loggedPathMax]
	}
	fields := []field{{"method", e.request.Method}, {"path", path}, {"status", int64(e.status)},
		{"ms", float64(took.Microseconds()) / 1000}, {"bytes", e.bytes}, {"client", e.request.RemoteAddr}, {"id", e.id}}
	if e.request.Context().Err() != nil {
		fields = append(fields, field{"gone", true})
	}
	e.server.log.line(at, "request", fields...)
}
