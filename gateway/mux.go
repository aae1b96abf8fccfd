package main

// mux.go: paths to the methods of openai.proto. Bodies pass unread, as google.api.HttpBody; all failures take the shape of refuse.go.

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/grpc-ecosystem/grpc-gateway/v2/runtime"
	"google.golang.org/genproto/googleapis/api/annotations"
	"google.golang.org/genproto/googleapis/api/httpbody"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	phalanxv1 "phalanx/gateway/gen/phalanx/v1"
)

const metricsPath = "/metrics"

// newMux binds every method of openai.proto that has a path, and the gateway's own three.
func newMux(s *server) (*runtime.ServeMux, error) {
	mux := runtime.NewServeMux(
		runtime.WithMarshalerOption(runtime.MIMEWildcard, marshaler{}),
		runtime.WithForwardResponseOption(startReply),
		runtime.WithErrorHandler(answerError),
		runtime.WithStreamErrorHandler(answerStreamError),
		runtime.WithRoutingErrorHandler(s.answerRoutingError),
		runtime.WithIncomingHeaderMatcher(noHeader),
		runtime.WithOutgoingHeaderMatcher(noHeader),
		runtime.WithOutgoingTrailerMatcher(noHeader),
		runtime.WithMetadata(callMetadata),
		runtime.WithDisablePathLengthFallback(),
		runtime.WithDisableChunkedEncoding(), // net/http chunks by itself what has no known length
	)
	if err := phalanxv1.RegisterOpenAIHandlerClient(context.Background(), mux, s.relay.openai); err != nil {
		return nil, err
	}
	for _, own := range ownRoutes(s) {
		for _, method := range own.methods {
			if err := mux.HandlePath(method, own.path, own.handler); err != nil {
				return nil, err
			}
		}
	}
	return mux, nil
}

type ownRoute struct {
	path    string
	methods []string
	handler runtime.HandlerFunc
}

func ownRoutes(s *server) []ownRoute {
	return []ownRoute{
		{"/health", []string{"GET", "HEAD"}, s.serveHealth},
		{"/ping", []string{"GET", "HEAD", "POST"}, s.serveHealth},
		{metricsPath, []string{"GET", "HEAD"}, s.serveMetrics},
	}
}

// routeTable names routes for metrics and knows what a 405 allows. Read-only once made.
type routeTable []tableRow

type tableRow struct {
	label   string // bounded: a client can not make new ones
	path    string // a prefix if it ends in "/"
	methods []string
}

const otherRoute = "other"

func newRouteTable(s *server) routeTable {
	var table routeTable
	for _, own := range ownRoutes(s) {
		table = append(table, tableRow{own.path, own.path, own.methods})
	}
	methods := phalanxv1.File_phalanx_v1_openai_proto.Services().ByName("OpenAI").Methods()
	for i := range methods.Len() {
		rule, _ := proto.GetExtension(methods.Get(i).Options(), annotations.E_Http).(*annotations.HttpRule)
		path, method := rule.GetPost(), http.MethodPost
		if path == "" {
			path, method = rule.GetGet(), http.MethodGet
		}
		if path == "" {
			continue
		}
		row := tableRow{label: path, path: path, methods: []string{method}}
		if prefix, variable, wild := strings.Cut(path, "{"); wild { // "/v1/models/{id=**}"
			name, _, _ := strings.Cut(variable, "=")
			row.path, row.label = prefix, prefix+"{"+name+"}"
		}
		table = append(table, row)
	}
	return table
}

func (t routeTable) find(path string) *tableRow {
	for i := range t {
		row := &t[i]
		if path == row.path || strings.HasSuffix(row.path, "/") && strings.HasPrefix(path, row.path) {
			return row
		}
	}
	return nil
}

// muxRequest is what the mux sees of a request: no header at all, so that none reaches the router by chance (keys, forwarded
// addresses, grpc-timeout, method overrides); a body that is read within the limits.
func muxRequest(e *exchange) *http.Request {
	r := e.request.WithContext(context.WithValue(e.request.Context(), exchangeKey{}, e))
	r.Header = http.Header{}
	r.Host, r.RemoteAddr = "", ""
	if r.URL.RawPath != "" { // the mux matches the path that was checked for a key
		r.URL = &url.URL{Path: r.URL.Path}
	}
	r.Body = &requestBody{exchange: e}
	return r
}

func noHeader(string) (string, bool) { return "", false }

// callMetadata is all that the router learns of a request beside its body.
func callMetadata(ctx context.Context, _ *http.Request) metadata.MD {
	e := exchangeOf(ctx)
	if e == nil {
		return nil
	}
	md := metadata.MD{"x-request-id": {e.id}}
	for _, name := range []string{"traceparent", "tracestate"} {
		if value := e.request.Header.Get(name); value != "" && isPlain(value, 512) {
			md[name] = []string{value}
		}
	}
	return md
}

// requestBody is read by the marshaler alone; it looks empty to whoever drains it afterwards.
type requestBody struct{ exchange *exchange }

func (b *requestBody) Read([]byte) (int, error) { return 0, io.EOF }
func (b *requestBody) Close() error             { return nil }

// marshaler moves bodies between HTTP and HttpBody without a look inside.
type marshaler struct{}

var errBodyRefused = errors.New("the request body was refused")

func (marshaler) NewDecoder(r io.Reader) runtime.Decoder {
	return runtime.DecoderFunc(func(v any) error {
		into, isBody := v.(*httpbody.HttpBody)
		from, isOurs := r.(*requestBody)
		if !isBody || !isOurs {
			return status.Errorf(codes.Internal, "no way to read a %T", v)
		}
		e := from.exchange
		var err *refusal
		into.Data, e.bodyHeld, err = readBody(e.request, e.control, e.server.options.maxBodyBytes, &e.server.budget)
		if err != nil {
			e.bodyRefusal = err
			return errBodyRefused
		}
		return nil
	})
}

// Marshal is reached by failures only: bodies are written by the mux itself.
func (marshaler) Marshal(v any) ([]byte, error) {
	if body, ok := v.(*httpbody.HttpBody); ok {
		return body.GetData(), nil
	}
	return internal().body(), nil
}

func (marshaler) Unmarshal([]byte, any) error { return errors.New("bodies are not read here") }

func (m marshaler) NewEncoder(w io.Writer) runtime.Encoder {
	return runtime.EncoderFunc(func(v any) error {
		data, err := m.Marshal(v)
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	})
}

func (marshaler) ContentType(v any) string {
	if body, ok := v.(*httpbody.HttpBody); ok && body.GetContentType() != "" {
		return body.GetContentType()
	}
	return "application/json"
}

// Delimiter is nothing: the router's bytes go out as they are.
func (marshaler) Delimiter() []byte { return nil }

// startReply sends the status and the headers that the router chose, before its first message.
func startReply(ctx context.Context, w http.ResponseWriter, message proto.Message) error {
	e, ok := w.(*exchange)
	if message == nil || !ok || e.status != 0 {
		return nil
	}
	md, _ := runtime.ServerMetadataFromContext(ctx)
	code := http.StatusOK
	if text := first(md.HeaderMD, "x-http-code"); text != "" {
		chosen, err := strconv.Atoi(text)
		if err != nil || chosen < 200 || chosen > 599 {
			return status.Errorf(codes.Internal, "the router chose the HTTP code '%s'", text)
		}
		code = chosen
	}
	h := e.Header()
	if seconds := first(md.HeaderMD, "retry-after"); seconds != "" {
		h.Set("Retry-After", seconds)
	}
	if retry := first(md.HeaderMD, "x-should-retry"); retry != "" {
		h.Set("X-Should-Retry", retry)
	}
	kind := marshaler{}.ContentType(message)
	h.Set("Content-Type", kind)
	if e.streaming = strings.HasPrefix(kind, "text/event-stream"); e.streaming {
		h.Set("Cache-Control", "no-cache")
		h.Set("X-Accel-Buffering", "no")
	}
	e.WriteHeader(code)
	return nil
}

func first(md metadata.MD, key string) string {
	if values := md[key]; len(values) > 0 {
		return values[0]
	}
	return ""
}

// answerError ends a request whose call could not be made.
func answerError(ctx context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, _ *http.Request, err error) {
	e, ok := w.(*exchange)
	if !ok {
		return
	}
	var chosen *runtime.HTTPStatusError
	switch {
	case e.bodyRefusal != nil:
		if e.bodyRefusal.http != http.StatusTooManyRequests {
			e.Header().Set("Connection", "close") // the rest of the body is still on its way
		}
		e.refuse(*e.bodyRefusal)
	case errors.As(err, &chosen):
		e.refuse(malformedPath())
	default:
		e.refuseRPC(err)
	}
}

// answerStreamError ends a reply whose stream failed, before or after its first message. The mux would write a failure of its own
// after it, which the exchange drops.
func answerStreamError(ctx context.Context, err error) *status.Status {
	if e := exchangeOf(ctx); e != nil {
		e.refuseRPC(err)
	}
	return status.New(codes.Internal, "")
}

func (e *exchange) refuseRPC(err error) {
	no := refusalOfRPC(err)
	if no.http == statusClientGone && e.server.draining.Load() {
		no = shuttingDown()
	}
	if no.http >= 500 {
		e.server.log.line(levelWarning, "call failed", field{"id", e.id}, field{"code", status.Code(err).String()},
			field{"reason", status.Convert(err).Message()})
	}
	e.refuse(no)
}

func (s *server) answerRoutingError(_ context.Context, _ *runtime.ServeMux, _ runtime.Marshaler, w http.ResponseWriter, r *http.Request,
	code int) {
	e, ok := w.(*exchange)
	if !ok {
		return
	}
	row := s.routes.find(r.URL.Path)
	switch {
	case code == http.StatusBadRequest:
		e.refuse(malformedPath())
	case code == http.StatusMethodNotAllowed && row != nil:
		allowed := append(slices.Clone(row.methods), http.MethodOptions)
		e.Header().Set("Allow", strings.Join(allowed, ", "))
		e.refuse(wrongMethod())
	default:
		e.refuse(noRoute())
	}
}
