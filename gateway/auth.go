package main

// auth.go: API keys. Every path needs one but the health probes; a preflight carries none and runs no handler.

import (
	"crypto/sha256"
	"crypto/subtle"
	"net/http"
	"strings"
)

// keyring holds digests, so that comparing takes the same time for every key of any length. Empty = all may enter.
type keyring [][sha256.Size]byte

func newKeyring(keys []string) keyring {
	ring := make(keyring, 0, len(keys))
	for _, key := range keys {
		ring = append(ring, sha256.Sum256([]byte(key)))
	}
	return ring
}

// check returns nil if the request may enter.
func (k keyring) check(r *http.Request) *refusal {
	if len(k) == 0 || r.Method == http.MethodOptions || isProbe(r.URL.Path) {
		return nil
	}
	key, ok := bearer(r.Header.Get("Authorization"))
	if !ok {
		out := missingKey()
		return &out
	}
	digest := sha256.Sum256([]byte(key))
	found := 0
	for i := range k {
		found |= subtle.ConstantTimeCompare(digest[:], k[i][:])
	}
	if found == 0 {
		out := wrongKey()
		return &out
	}
	return nil
}

// bearer takes the key out of "Bearer KEY"; the scheme's case does not matter.
func bearer(header string) (string, bool) {
	scheme, key, found := strings.Cut(strings.TrimSpace(header), " ")
	key = strings.TrimSpace(key)
	return key, found && strings.EqualFold(scheme, "Bearer") && key != ""
}

func isProbe(path string) bool { return path == "/health" || path == "/ping" }
