package main

// refuse.go: the OpenAI shape of a failure that the gateway answers itself. router/openai/error.cc writes the same shape for all
// others; tests/fixtures/refusals.json holds the two equal.

import (
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"unicode/utf8"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

const (
	requestError   = "invalid_request_error"
	serverError    = "server_error"
	rateLimitError = "rate_limit_error"

	messageBytesMax  = 1000
	retryAfterMax    = 60 // seconds; clients ignore more
	internalMessage  = "The server had an internal error while processing the request."
	sizeErrorSuffix  = "arger than max" // gRPC's words for a message over a size limit, in Go and in C++
	statusClientGone = 499
)

// refusal is one failure as the client sees it. Empty param and code are written as null.
type refusal struct {
	http       int
	kind       string // "type" in the body
	message    string
	param      string
	code       string
	retryAfter int  // seconds; 0 = no header
	noRetry    bool // sends "x-should-retry: false"
}

func noRoute() refusal {
	return refusal{http: http.StatusNotFound, kind: requestError,
		message: "This path is not served. The OpenAI-compatible routes start with /v1, as in POST /v1/chat/completions."}
}

func wrongMethod() refusal {
	return refusal{http: http.StatusMethodNotAllowed, kind: requestError, message: "This path does not take that method."}
}

func malformedPath() refusal {
	return refusal{http: http.StatusBadRequest, kind: requestError, message: "The path of the request is malformed."}
}

func missingKey() refusal {
	return refusal{http: http.StatusUnauthorized, kind: requestError, code: "invalid_api_key",
		message: "No API key was given. Send it in the header \"Authorization: Bearer KEY\"."}
}

func wrongKey() refusal {
	return refusal{http: http.StatusUnauthorized, kind: requestError, code: "invalid_api_key", message: "The API key is not valid."}
}

func bodyTooLarge(limit int64) refusal {
	return refusal{http: http.StatusRequestEntityTooLarge, kind: requestError,
		message: fmt.Sprintf("The request body is larger than %d bytes.", limit)}
}

func bodyTooSlow() refusal {
	return refusal{http: http.StatusRequestTimeout, kind: requestError, message: "The request body did not arrive in time."}
}

func bodyCut() refusal {
	return refusal{http: http.StatusBadRequest, kind: requestError, message: "The request body ended before its end."}
}

func headersTooLarge(limit int) refusal {
	return refusal{http: http.StatusRequestHeaderFieldsTooLarge, kind: requestError,
		message: fmt.Sprintf("The request headers are larger than %d bytes.", limit)}
}

func tooBusy() refusal {
	return refusal{http: http.StatusTooManyRequests, kind: rateLimitError, code: "queue_full", retryAfter: 1,
		message: "Too many requests are running. Please try again in a moment."}
}

func internal() refusal { return refusalOf(codes.Internal, "") }

func notReady() refusal {
	out := refusalOf(codes.Unavailable, "The server is not ready to answer. Please try again in a moment.")
	out.retryAfter = 1
	return out
}

func shuttingDown() refusal {
	out := refusalOf(codes.Unavailable, "The server is shutting down. Please try again in a moment.")
	out.retryAfter = 1
	return out
}

// refusalOf maps a status code as router/openai/error.cc does. Our own failures may name files or addresses: they are for the log.
func refusalOf(code codes.Code, message string) refusal {
	r := refusal{message: message}
	switch code {
	case codes.InvalidArgument, codes.OutOfRange, codes.FailedPrecondition, codes.AlreadyExists, codes.Aborted:
		r.http, r.kind = http.StatusBadRequest, requestError
	case codes.Unauthenticated:
		r.http, r.kind, r.code = http.StatusUnauthorized, requestError, "invalid_api_key"
	case codes.PermissionDenied:
		r.http, r.kind = http.StatusForbidden, requestError
	case codes.NotFound:
		r.http, r.kind = http.StatusNotFound, requestError
	case codes.ResourceExhausted:
		r.http, r.kind, r.code = http.StatusTooManyRequests, rateLimitError, "rate_limit_exceeded"
	case codes.Canceled:
		r.http, r.kind = statusClientGone, requestError
	case codes.Unimplemented:
		r.http, r.kind, r.code, r.noRetry = http.StatusNotImplemented, serverError, "not_implemented", true
	case codes.Unavailable:
		r.http, r.kind, r.code = http.StatusServiceUnavailable, serverError, "unavailable"
	case codes.DeadlineExceeded:
		r.http, r.kind, r.code = http.StatusGatewayTimeout, serverError, "timeout"
	default:
		r.http, r.kind, r.message = http.StatusInternalServerError, serverError, internalMessage
	}
	return r
}

// refusalOfRPC is what a failed call to the router becomes. The router answers failures of a request itself, so what arrives here as
// a status is the transport's: its text names addresses and is replaced.
func refusalOfRPC(err error) refusal {
	st := status.Convert(err)
	switch st.Code() {
	case codes.Unavailable:
		return notReady()
	case codes.ResourceExhausted:
		if strings.Contains(st.Message(), sizeErrorSuffix) {
			if strings.HasPrefix(st.Message(), "grpc: received") { // the reply was too large, which is not the client's doing
				return internal()
			}
			return refusal{http: http.StatusRequestEntityTooLarge, kind: requestError, message: "The request is too large."}
		}
		r := refusalOf(st.Code(), st.Message())
		r.retryAfter = 1
		return r
	case codes.DeadlineExceeded:
		return refusalOf(st.Code(), "The request took too long.")
	case codes.Canceled:
		return refusalOf(st.Code(), "The request was cancelled.")
	default:
		return refusalOf(st.Code(), st.Message())
	}
}

// body is the JSON that router/openai/error.cc would write for the same failure.
func (r refusal) body() []byte {
	out := make([]byte, 0, 128+len(r.message))
	out = append(out, `{"error":{"message":`...)
	out = appendJSONString(out, cutMessage(r.message))
	out = append(out, `,"type":"`...)
	out = append(out, r.kind...)
	out = append(out, `","param":`...)
	out = appendStringOrNull(out, r.param)
	out = append(out, `,"code":`...)
	out = appendStringOrNull(out, r.code)
	return append(out, "}}"...)
}

// event is the same as the last events of a stream that has begun.
func (r refusal) event() []byte {
	out := append([]byte("data: "), r.body()...)
	return append(out, "\n\ndata: [DONE]\n\n"...)
}

// writeHead sets the headers and the status line of a refusal.
func (r refusal) writeHead(w http.ResponseWriter) {
	h := w.Header()
	h.Del("Transfer-Encoding")
	h.Del("Trailer")
	h.Set("Content-Type", "application/json")
	if r.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(min(r.retryAfter, retryAfterMax)))
	}
	if r.noRetry {
		h.Set("X-Should-Retry", "false")
	}
	if r.http == http.StatusUnauthorized {
		h.Set("Www-Authenticate", "Bearer")
	}
	w.WriteHeader(r.http)
}

// cutMessage keeps the first messageBytesMax bytes, not ending inside a character.
func cutMessage(message string) string {
	if len(message) <= messageBytesMax {
		return message
	}
	end := messageBytesMax
	for end > 0 && message[end]&0xC0 == 0x80 {
		end--
	}
	return message[:end]
}

func appendStringOrNull(out []byte, text string) []byte {
	if text == "" {
		return append(out, "null"...)
	}
	return appendJSONString(out, text)
}

// appendJSONString escapes as router/openai/json_text.cc does; encoding/json would also escape <, > and &.
func appendJSONString(out []byte, text string) []byte {
	const hex = "0123456789abcdef"
	out = append(out, '"')
	for i := 0; i < len(text); {
		c := text[i]
		if c >= utf8.RuneSelf {
			char, size := utf8.DecodeRuneInString(text[i:])
			out = utf8.AppendRune(out, char) // an invalid byte becomes U+FFFD
			i += size
			continue
		}
		i++
		switch c {
		case '"', '\\':
			out = append(out, '\\', c)
		case '\n':
			out = append(out, `\n`...)
		case '\r':
			out = append(out, `\r`...)
		case '\t':
			out = append(out, `\t`...)
		case '\b':
			out = append(out, `\b`...)
		case '\f':
			out = append(out, `\f`...)
		default:
			if c < 0x20 {
				out = append(out, `\u00`...)
				out = append(out, hex[c>>4], hex[c&15])
			} else {
				out = append(out, c)
			}
		}
	}
	return append(out, '"')
}
