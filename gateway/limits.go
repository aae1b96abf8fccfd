package main

// limits.go: what one client may take: connections, header and body bytes, time. All is checked before anything is sent on.

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	headerBytesMax    = 16 << 10
	idleTimeout       = 75 * time.Second // between two requests of a connection
	streamsPerClient  = 100              // HTTP/2 streams of one connection
	descriptorReserve = 128              // for the router's connections, logs, probes

	messageBytesMax64 = 64 << 20               // what the router takes in one message
	bodyBytesLimit    = messageBytesMax64 - 64 // room for the frame of HttpBody
	bodyBytesAllMax   = 512 << 20              // bodies held at one time, of all requests together
	bodyGrace         = 30 * time.Second       // a body may take so long,
	bodyBytesPerSec   = 16 << 10               // and a second more for each of these
	bodyFirstBuffer   = 64 << 10               // taken before a byte has come; the rest grows with what comes

	writeTimeout = 60 * time.Second // a client that reads nothing for so long is cut off
	writeRefresh = 5 * time.Second  // setting a deadline costs: not for each chunk
)

// raiseDescriptors lifts the soft limit of open files to the hard one and returns it.
func raiseDescriptors() (int, error) {
	var limit syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err != nil {
		return 0, fmt.Errorf("reading the limit of open files: %w", err)
	}
	if limit.Cur < limit.Max {
		raised := syscall.Rlimit{Cur: limit.Max, Max: limit.Max}
		if syscall.Setrlimit(syscall.RLIMIT_NOFILE, &raised) == nil {
			limit = raised
		}
	}
	return int(min(limit.Cur, 1<<30)), nil
}

// connectionCap is how many connections fit beside the reserve. Errors: a number that was asked for does not fit.
func connectionCap(o *options, descriptors int) (int, error) {
	room := descriptors - descriptorReserve
	if o.maxConnections <= room {
		return o.maxConnections, nil
	}
	if o.connectionsSet || room < 1 {
		return 0, fmt.Errorf("--max-connections %d needs %d open files, and the limit is %d: raise it (ulimit -n) or lower the flag",
			o.maxConnections, o.maxConnections+descriptorReserve, descriptors)
	}
	return room, nil
}

// cappedListener turns connections away above a number. A flood costs an accept and a close, and running requests go on.
type cappedListener struct {
	net.Listener
	max    int64
	open   atomic.Int64
	refuse []byte // sent before the close; nil for TLS
}

func (l *cappedListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if l.open.Add(1) <= l.max {
			return &cappedConn{Conn: conn, open: &l.open}, nil
		}
		l.open.Add(-1)
		if l.refuse != nil { // fits the empty send buffer: does not block
			_ = conn.SetWriteDeadline(time.Now().Add(time.Second))
			_, _ = conn.Write(l.refuse)
		}
		_ = conn.Close()
	}
}

type cappedConn struct {
	net.Conn
	once sync.Once
	open *atomic.Int64
}

func (c *cappedConn) Close() error {
	c.once.Do(func() { c.open.Add(-1) })
	return c.Conn.Close()
}

// CloseWrite lets net/http end a refused upload without a reset that would swallow the answer.
func (c *cappedConn) CloseWrite() error {
	if half, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return half.CloseWrite()
	}
	return nil
}

// headerBytes is about what the headers took on the wire.
func headerBytes(r *http.Request) int {
	total := len(r.Method) + len(r.RequestURI) + len(r.Host) + 24
	for name, values := range r.Header {
		for _, value := range values {
			total += len(name) + len(value) + 4
		}
	}
	return total
}

// bodyBudget bounds the bodies that all requests hold together.
type bodyBudget struct {
	max  int64
	held atomic.Int64
}

func (b *bodyBudget) take(n int64) bool {
	if b.held.Add(n) <= b.max {
		return true
	}
	b.held.Add(-n)
	return false
}

// readBody reads a whole body. The caller gives `held` back to the budget once the body is no longer used, whether it was refused
// or not. The deadline moves on with what arrives, so a slow sender is cut off and a slow line is not.
func readBody(r *http.Request, rc *http.ResponseController, max int64, budget *bodyBudget) (body []byte, held int64, no *refusal) {
	fail := func(out refusal) ([]byte, int64, *refusal) { return nil, held, &out }
	if r.ContentLength > max {
		return fail(bodyTooLarge(max))
	}
	grow := func(size int64) bool {
		if !budget.take(size - int64(cap(body))) {
			return false
		}
		held += size - int64(cap(body))
		body = append(make([]byte, 0, size), body...)
		return true
	}
	size := int64(bodyFirstBuffer)
	if r.ContentLength >= 0 {
		size = min(size, r.ContentLength+1) // one more shows the end without growing
	}
	if !grow(size) {
		return fail(tooBusy())
	}
	deadline := time.Now().Add(bodyGrace)
	_ = rc.SetReadDeadline(deadline)
	paid := 0 // bytes that have moved the deadline
	for {
		if len(body) == cap(body) {
			if !grow(min(2*int64(cap(body)), max+1)) {
				return fail(tooBusy())
			}
		}
		n, err := r.Body.Read(body[len(body):cap(body)])
		body = body[:len(body)+n]
		if int64(len(body)) > max {
			return fail(bodyTooLarge(max))
		}
		switch {
		case err == io.EOF:
			_ = rc.SetReadDeadline(time.Time{})
			return body, held, nil
		case errors.Is(err, os.ErrDeadlineExceeded):
			return fail(bodyTooSlow())
		case err != nil:
			return fail(bodyCut())
		}
		if len(body)-paid >= bodyBytesPerSec {
			deadline = deadline.Add(time.Duration((len(body)-paid)/bodyBytesPerSec) * time.Second)
			paid += (len(body) - paid) / bodyBytesPerSec * bodyBytesPerSec
			_ = rc.SetReadDeadline(deadline)
		}
	}
}
