package main

// server.go: the HTTP server: listens, leads each request through the checks to the mux, drains.

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"fmt"
	"log"
	"net"
	"net/http"
	"strconv"
	"sync/atomic"
	"time"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
)

const (
	requestIDMax = 128
	drainPoll    = 5 * time.Millisecond
	farewellTime = time.Second            // for the last events of streams that are cut at the end of the drain
	goodbyeTime  = 100 * time.Millisecond // for the last bytes of all others
)

type server struct {
	options  *options
	log      *logger
	relay    *relay
	metrics  *metrics
	keys     keyring
	cors     *cors
	mux      *runtime.ServeMux
	routes   routeTable
	budget   bodyBudget
	running  atomic.Int64 // requests
	inflight atomic.Int64 // those that call the router
	draining atomic.Bool

	http     *http.Server
	listener net.Listener
	cancel   context.CancelFunc // of every request
	done     chan struct{}      // closed when the listener is no longer served
}

// start listens and serves. Errors: the address can not be bound, a certificate can not be read, too few descriptors.
func start(o *options, log_ *logger) (*server, error) {
	descriptors, err := raiseDescriptors()
	if err != nil {
		return nil, err
	}
	connections, err := connectionCap(o, descriptors)
	if err != nil {
		return nil, err
	}
	if connections < o.maxConnections {
		log_.warningf("%d connections at most: the limit of open files is %d", connections, descriptors)
	}
	s := &server{options: o, log: log_, metrics: newMetrics(), keys: newKeyring(o.apiKeys), cors: newCORS(o), done: make(chan struct{})}
	s.budget.max = max(bodyBytesAllMax, o.maxBodyBytes)
	config, err := tlsConfig(o)
	if err != nil {
		return nil, err
	}
	raw, err := net.Listen("tcp", net.JoinHostPort(o.host, strconv.Itoa(o.port)))
	if err != nil {
		return nil, fmt.Errorf("cannot listen on %s: %w", net.JoinHostPort(o.host, strconv.Itoa(o.port)), err)
	}
	if s.relay, err = newRelay(o.router, o.routerConnections, log_); err == nil {
		s.mux, err = newMux(s)
	}
	if err != nil {
		_ = raw.Close()
		return nil, err
	}
	s.routes = newRouteTable(s)
	capped := &cappedListener{Listener: raw, max: int64(connections)}
	if config == nil {
		capped.refuse = fullReply()
	}
	s.listener = capped
	s.serve(config)
	return s, nil
}

func tlsConfig(o *options) (*tls.Config, error) {
	if o.tlsCert == "" {
		return nil, nil
	}
	pair, err := tls.LoadX509KeyPair(o.tlsCert, o.tlsKey)
	if err != nil {
		return nil, fmt.Errorf("--ssl-certfile, --ssl-keyfile: %w", err)
	}
	return &tls.Config{Certificates: []tls.Certificate{pair}, MinVersion: tls.VersionTLS12}, nil
}

// fullReply is sent to a connection above the cap, before it has said anything.
func fullReply() []byte {
	no := tooBusy()
	no.message = "Too many connections are open. Please try again in a moment."
	body := no.body()
	head := fmt.Sprintf("HTTP/1.1 429 Too Many Requests\r\nContent-Type: application/json\r\nContent-Length: %d\r\nRetry-After: %d\r\n"+
		"Connection: close\r\n\r\n", len(body), no.retryAfter)
	return append([]byte(head), body...)
}

func (s *server) serve(config *tls.Config) {
	var base context.Context
	base, s.cancel = context.WithCancel(context.Background())
	s.http = &http.Server{
		Handler:           s,
		TLSConfig:         config,
		ReadHeaderTimeout: s.options.headerTimeout,
		IdleTimeout:       idleTimeout,
		MaxHeaderBytes:    2 * headerBytesMax, // above this net/http answers itself, below ServeHTTP does, in our shape
		ErrorLog:          log.New(s.log, "", 0),
		BaseContext:       func(net.Listener) context.Context { return base },
		HTTP2:             &http.HTTP2Config{MaxConcurrentStreams: streamsPerClient},
	}
	go func() {
		defer close(s.done)
		if config != nil {
			_ = s.http.ServeTLS(s.listener, "", "")
		} else {
			_ = s.http.Serve(s.listener)
		}
	}()
}

// address is where the server listens, with the real port.
func (s *server) address() string { return s.listener.Addr().String() }

// ServeHTTP is the life of one request: id, limits, origin, key, route.
func (s *server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.running.Add(1)
	defer s.running.Add(-1)
	e := newExchange(s, w, r)
	defer e.finish()
	if s.draining.Load() {
		w.Header().Set("Connection", "close")
	}
	e.id = requestID(r.Header.Get("X-Request-Id"))
	w.Header().Set("X-Request-Id", e.id)
	e.route = otherRoute
	if row := s.routes.find(r.URL.Path); row != nil {
		e.route = row.label
	}
	if headerBytes(r) > headerBytesMax {
		w.Header().Set("Connection", "close")
		e.refuse(headersTooLarge(headerBytesMax))
		return
	}
	if s.cors.apply(e, r) {
		return
	}
	if no := s.keys.check(r); no != nil {
		e.refuse(*no)
		return
	}
	if isProbe(r.URL.Path) || e.route == metricsPath || e.route == otherRoute {
		s.mux.ServeHTTP(e, muxRequest(e))
		return
	}
	if s.draining.Load() {
		e.refuse(shuttingDown())
		return
	}
	defer s.inflight.Add(-1)
	if s.inflight.Add(1) > s.relay.streamsMax() {
		e.refuse(tooBusy())
		return
	}
	s.mux.ServeHTTP(e, muxRequest(e))
}

// serveHealth says whether a request sent now could be answered.
func (s *server) serveHealth(w http.ResponseWriter, _ *http.Request, _ map[string]string) {
	switch e := w.(*exchange); {
	case s.draining.Load():
		e.refuse(shuttingDown())
	case !s.relay.healthy():
		e.refuse(notReady())
	default:
		e.WriteHeader(http.StatusOK)
	}
}

// shutdown drains: the listener closes, probes and new requests on open connections are answered with 503, and running requests go on
// until ctx ends; then streams get their last events and the rest is cut.
func (s *server) shutdown(ctx context.Context) {
	s.draining.Store(true)
	_ = s.listener.Close()
	<-s.done
	if !s.idle(ctx) {
		s.log.warningf("%d requests did not finish in time and are cut", s.running.Load())
		s.cancel()
		last, stop := context.WithTimeout(context.Background(), farewellTime)
		defer stop()
		s.idle(last)
	}
	// What is left is connections without a request. net/http looks for them in steps, so it gets a moment to say goodbye to HTTP/2.
	last, stop := context.WithTimeout(context.Background(), goodbyeTime)
	defer stop()
	if s.http.Shutdown(last) != nil {
		_ = s.http.Close()
	}
	s.cancel()
	s.relay.close()
}

// idle waits until no request runs; false if ctx ended first.
func (s *server) idle(ctx context.Context) bool {
	tick := time.NewTicker(drainPoll)
	defer tick.Stop()
	for s.running.Load() > 0 {
		select {
		case <-ctx.Done():
			return s.running.Load() == 0
		case <-tick.C:
		}
	}
	return true
}

// requestID keeps a client's id if it is short and plain, else makes one. The id names the reply, so it must not be guessed.
func requestID(given string) string {
	if given != "" && isPlain(given, requestIDMax) && !containsQuote(given) {
		return given
	}
	var raw [16]byte
	_, _ = rand.Read(raw[:]) // never fails
	return hex.EncodeToString(raw[:])
}

// isPlain is true for visible ASCII without blanks, of a bounded length.
func isPlain(text string, most int) bool {
	for i := range len(text) {
		if text[i] <= ' ' || text[i] > '~' {
			return false
		}
	}
	return len(text) <= most
}

func containsQuote(text string) bool {
	for i := range len(text) {
		if c := text[i]; c == '"' || c == '\\' || c == '\'' || c == '<' || c == '>' {
			return true
		}
	}
	return false
}
