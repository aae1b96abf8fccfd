package main

// relay.go: the way to the router: connections, their watch, its health. It knows no path and reads no body.

import (
	"context"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health/grpc_health_v1"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/status"

	phalanxv1 "phalanx/gateway/gen/phalanx/v1"
)

const (
	replyBytesMax = 256 << 20 // of one message from the router
	// Of one reply. A client that stops reading is paused when this and its socket's buffer are full.
	streamWindow     = 128 << 10
	connectionWindow = 8 << 20
	streamsPerLink   = 4000 // the router takes 4,096 on a connection; a call above that would wait without a word

	healthTimeout = time.Second
	healthKept    = 100 * time.Millisecond
	watchPeriod   = time.Second
	watchSilence  = 3 * time.Second
)

// relay holds the connections to one router. Any goroutine may use it.
type relay struct {
	links  []*link
	probe  *link // its own connection, so that health never waits behind replies
	openai phalanxv1.OpenAIClient
	next   atomic.Uint32
	log    *logger
	stop   context.CancelFunc

	mu      sync.Mutex // held while asking: those who come meanwhile get the same answer
	serving bool       // guarded by mu
	asked   time.Time  // guarded by mu
}

func newRelay(address string, connections int, log *logger) (*relay, error) {
	ctx, stop := context.WithCancel(context.Background())
	r := &relay{log: log, stop: stop}
	for range connections + 1 {
		l, err := newLink(address, log)
		if err != nil {
			r.close()
			return nil, err
		}
		r.links = append(r.links, l)
	}
	r.probe, r.links = r.links[connections], r.links[:connections]
	r.openai = phalanxv1.NewOpenAIClient(r)
	for _, l := range r.links {
		go l.watch(ctx)
	}
	go r.watchHealth(ctx)
	return r, nil
}

func (r *relay) close() {
	r.stop()
	for _, l := range r.links {
		_ = l.conn.Close()
	}
	if r.probe != nil {
		_ = r.probe.conn.Close()
	}
}

// streamsMax is how many calls may run at one time.
func (r *relay) streamsMax() int64 { return int64(len(r.links)) * streamsPerLink }

// Invoke and NewStream make the relay a grpc.ClientConnInterface over all its connections.
func (r *relay) Invoke(ctx context.Context, method string, args, reply any, opts ...grpc.CallOption) error {
	return r.pick().Invoke(ctx, method, args, reply, opts...)
}

func (r *relay) NewStream(ctx context.Context, desc *grpc.StreamDesc, method string, opts ...grpc.CallOption) (grpc.ClientStream, error) {
	return r.pick().NewStream(ctx, desc, method, opts...)
}

func (r *relay) pick() *grpc.ClientConn { return r.links[int(r.next.Add(1))%len(r.links)].conn }

// healthy says whether the router can serve now. Probes that come close together share one answer.
func (r *relay) healthy() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if time.Since(r.asked) < healthKept {
		return r.serving
	}
	ctx, cancel := context.WithTimeout(context.Background(), healthTimeout)
	defer cancel()
	reply, err := grpc_health_v1.NewHealthClient(r.probe.conn).Check(ctx, &grpc_health_v1.HealthCheckRequest{})
	serving := err == nil && reply.GetStatus() == grpc_health_v1.HealthCheckResponse_SERVING
	// The probe's connection may be up while others still wait out a failed try: requests on them would be refused.
	for _, l := range r.links {
		serving = serving && l.bringUp(ctx)
	}
	if serving != r.serving || r.asked.IsZero() {
		r.logHealth(serving, reply.GetStatus(), err)
	}
	r.serving, r.asked = serving, time.Now()
	return serving
}

func (r *relay) logHealth(serving bool, state grpc_health_v1.HealthCheckResponse_ServingStatus, err error) {
	switch {
	case serving:
		r.log.infof("the router serves")
	case r.asked.IsZero(): // they start together
		r.log.infof("waiting for the router")
	case err != nil:
		r.log.warningf("the router does not answer: %s", status.Convert(err).Message())
	default:
		r.log.warningf("the router does not serve yet: %s", strings.ToLower(state.String()))
	}
}

// watchHealth keeps the log up to date while nobody probes, and brings lost connections back before a request needs them.
func (r *relay) watchHealth(ctx context.Context) {
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for {
		for _, l := range r.links {
			l.conn.Connect()
		}
		r.healthy()
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// link is one connection and its watch. gRPC's own keep-alive is never faster than 10 s in Go, which is too long for a router that
// is stopped or cut off: the watch asks each second, and ends the socket after watchSilence without a byte.
type link struct {
	conn *grpc.ClientConn
	log  *logger
	read atomic.Int64 // unix nanoseconds of the last byte, or of the dial

	mu      sync.Mutex
	sockets map[net.Conn]struct{} // guarded by mu; open ones, nearly always one
}

func newLink(address string, log *logger) (*link, error) {
	network, target := "tcp", address
	if path, unix := strings.CutPrefix(address, "unix:"); unix {
		network, target = "unix", path
	}
	l := &link{log: log, sockets: map[net.Conn]struct{}{}}
	dial := func(ctx context.Context, _ string) (net.Conn, error) {
		raw, err := (&net.Dialer{}).DialContext(ctx, network, target)
		if err != nil {
			return nil, err
		}
		return l.adopt(raw), nil
	}
	conn, err := grpc.NewClient("passthrough:///router",
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithAuthority("localhost"),
		grpc.WithContextDialer(dial),
		grpc.WithNoProxy(),
		grpc.WithIdleTimeout(0),
		grpc.WithConnectParams(grpc.ConnectParams{MinConnectTimeout: 2 * time.Second,
			Backoff: backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 2 * time.Second}}),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: 10 * time.Second, Timeout: time.Second, PermitWithoutStream: true}),
		grpc.WithInitialWindowSize(streamWindow),
		grpc.WithInitialConnWindowSize(connectionWindow),
		grpc.WithReadBufferSize(64<<10),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(replyBytesMax), grpc.MaxCallSendMsgSize(messageBytesMax64)))
	l.conn = conn
	return l, err
}

// bringUp connects now, not when the pause after the last failed try is over. False: still not connected.
func (l *link) bringUp(ctx context.Context) bool {
	for range 8 { // idle, connecting, ready; a failed try adds three more
		state := l.conn.GetState()
		if state == connectivity.Ready {
			return true
		}
		l.conn.ResetConnectBackoff()
		l.conn.Connect()
		if !l.conn.WaitForStateChange(ctx, state) {
			return false
		}
	}
	return l.conn.GetState() == connectivity.Ready
}

func (l *link) adopt(raw net.Conn) net.Conn {
	c := &watchedConn{Conn: raw, link: l}
	l.read.Store(time.Now().UnixNano())
	l.mu.Lock()
	defer l.mu.Unlock()
	l.sockets[c] = struct{}{}
	return c
}

// watch asks for a sign of life once a period. Any byte is one: a busy router may be late with the answer to this very question.
func (l *link) watch(ctx context.Context) {
	client := grpc_health_v1.NewHealthClient(l.conn)
	tick := time.NewTicker(watchPeriod)
	defer tick.Stop()
	for unanswered := 0; ; {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		asking, cancel := context.WithTimeout(ctx, healthTimeout)
		_, err := client.Check(asking, &grpc_health_v1.HealthCheckRequest{})
		cancel()
		if status.Code(err) != codes.DeadlineExceeded {
			unanswered = 0
			continue
		}
		unanswered++
		quiet := time.Since(time.Unix(0, l.read.Load()))
		if unanswered >= 2 && quiet >= watchSilence && ctx.Err() == nil {
			l.log.warningf("the router has been silent for %.1f s: ending the connection", quiet.Seconds())
			l.drop()
			unanswered = 0
		}
	}
}

func (l *link) drop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	for c := range l.sockets {
		_ = c.(*watchedConn).Conn.Close()
	}
}

// watchedConn notes when bytes came.
type watchedConn struct {
	net.Conn
	link *link
}

func (c *watchedConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if n > 0 {
		c.link.read.Store(time.Now().UnixNano())
	}
	return n, err
}

func (c *watchedConn) Close() error {
	c.link.mu.Lock()
	delete(c.link.sockets, c)
	c.link.mu.Unlock()
	return c.Conn.Close()
}
