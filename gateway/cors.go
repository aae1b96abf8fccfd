package main

// cors.go: what a page from another origin may do, with the flags and the answers that vLLM users know.

import (
	"net/http"
	"slices"
	"strings"
)

const (
	corsMaxAge  = "600" // seconds a browser may keep a preflight's answer
	corsExposed = "X-Request-Id, Retry-After, X-Should-Retry"
)

const corsMethods = "DELETE, GET, HEAD, OPTIONS, PATCH, POST, PUT"

type cors struct {
	origins     []string
	anyOrigin   bool
	methods     string // as sent; "*" in the options = all of corsMethods
	anyMethod   bool
	headers     string // as sent, when not all are allowed
	anyHeader   bool
	credentials bool
}

func newCORS(o *options) *cors {
	return &cors{
		origins:     o.allowedOrigins,
		anyOrigin:   slices.Contains(o.allowedOrigins, "*"),
		anyMethod:   slices.Contains(o.allowedMethods, "*"),
		methods:     strings.Join(o.allowedMethods, ", "),
		anyHeader:   slices.Contains(o.allowedHeaders, "*"),
		headers:     strings.Join(o.allowedHeaders, ", "),
		credentials: o.allowCredentials,
	}
}

// apply sets the headers of the answer. It returns true if the request was a preflight, which ends here.
func (c *cors) apply(w http.ResponseWriter, r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" {
		return false
	}
	h := w.Header()
	allowed := c.anyOrigin || slices.Contains(c.origins, origin)
	if allowed {
		if c.anyOrigin && !c.credentials {
			h.Set("Access-Control-Allow-Origin", "*")
		} else { // with credentials a browser wants its own origin by name
			h.Set("Access-Control-Allow-Origin", origin)
			h.Add("Vary", "Origin")
		}
		if c.credentials {
			h.Set("Access-Control-Allow-Credentials", "true")
		}
	}
	if r.Method != http.MethodOptions || r.Header.Get("Access-Control-Request-Method") == "" {
		if allowed {
			h.Set("Access-Control-Expose-Headers", corsExposed)
		}
		return false
	}
	c.preflight(h, r)
	w.WriteHeader(http.StatusNoContent)
	return true
}

func (c *cors) preflight(h http.Header, r *http.Request) {
	if c.anyMethod {
		h.Set("Access-Control-Allow-Methods", corsMethods)
	} else {
		h.Set("Access-Control-Allow-Methods", c.methods)
	}
	if c.anyHeader { // "*" does not cover Authorization: name what was asked for
		if asked := r.Header.Get("Access-Control-Request-Headers"); asked != "" {
			h.Set("Access-Control-Allow-Headers", asked)
			h.Add("Vary", "Access-Control-Request-Headers")
		}
	} else {
		h.Set("Access-Control-Allow-Headers", c.headers)
	}
	h.Set("Access-Control-Max-Age", corsMaxAge)
}
