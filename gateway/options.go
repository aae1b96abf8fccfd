package main

// options.go: the flags of the gateway, read with the rules of services/options.h: --name value, --name=value, --no-name for switches,
// underscores for dashes; a list takes all following words that are not flags. First wins: flag, environment, default.

import (
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"
)

const keysVariable = "PHALANX_API_KEY"

// options are frozen after parseOptions.
type options struct {
	router            string // unix:PATH or HOST:PORT of phalanx-router
	routerConnections int    // HTTP/2 connections to it; a connection is read by one thread on each side

	host string // where to listen; empty = all addresses
	port int    // 0 = any free one

	apiKeys []string // empty = everybody may enter
	tlsCert string   // PEM files; both or none
	tlsKey  string

	allowedOrigins   []string
	allowedMethods   []string
	allowedHeaders   []string
	allowCredentials bool

	maxBodyBytes    int64
	maxConnections  int
	connectionsSet  bool          // --max-connections was given: refuse to start rather than lower it
	shutdownTimeout time.Duration // running requests may finish for so long after SIGTERM
	headerTimeout   time.Duration // no flag: from the first byte, or the handshake, to the end of the headers

	logLevel  string
	logFormat string

	help bool
}

func defaultOptions() *options {
	return &options{
		routerConnections: 2,
		port:              8000,
		allowedOrigins:    []string{"*"},
		allowedMethods:    []string{"*"},
		allowedHeaders:    []string{"*"},
		maxBodyBytes:      16 << 20,
		maxConnections:    4096,
		shutdownTimeout:   30 * time.Second,
		headerTimeout:     10 * time.Second,
		logLevel:          "info",
		logFormat:         "text",
	}
}

type flagKind int

const (
	kindValue  flagKind = iota
	kindSwitch          // takes no word
	kindList            // takes all words up to the next flag; repeats add
)

// flagSpec is one row of --help and of the parser.
type flagSpec struct {
	name  string
	kind  flagKind
	shown string // default in --help
	help  string
	set   func(text string) error
}

// flags lists every flag, bound to the fields of o.
func (o *options) flags() []flagSpec {
	return []flagSpec{
		{"router", kindValue, "", "address of phalanx-router: unix:PATH or HOST:PORT", text(&o.router)},
		{"router-connections", kindValue, "2", "connections to the router", number(&o.routerConnections, 1, 64)},
		{"host", kindValue, "all", "where to listen", text(&o.host)},
		{"port", kindValue, "8000", "where to listen; 0 takes a free port", number(&o.port, 0, 65535)},
		{"api-key", kindList, keysVariable, "keys that may enter", list(&o.apiKeys)},
		{"ssl-certfile", kindValue, "", "certificate chain (PEM): serves HTTPS", text(&o.tlsCert)},
		{"ssl-keyfile", kindValue, "", "its private key (PEM)", text(&o.tlsKey)},
		{"allowed-origins", kindList, "*", "origins that browsers may call from", list(&o.allowedOrigins)},
		{"allowed-methods", kindList, "*", "methods they may use", list(&o.allowedMethods)},
		{"allowed-headers", kindList, "*", "headers they may send", list(&o.allowedHeaders)},
		{"allow-credentials", kindSwitch, "false", "they may send cookies and the like", toggle(&o.allowCredentials)},
		{"max-body-bytes", kindValue, "16Mi", "largest request body", byteCount(&o.maxBodyBytes, 1, bodyBytesLimit)},
		{"max-connections", kindValue, "4096", "open connections; more are turned away", func(t string) error {
			o.connectionsSet = true
			return number(&o.maxConnections, 1, 1<<20)(t)
		}},
		{"shutdown-timeout", kindValue, "30", "seconds that running requests may go on after SIGTERM", seconds(&o.shutdownTimeout)},
		{"log-level", kindValue, "info", "debug, info, warning or error", text(&o.logLevel)},
		{"log-format", kindValue, "text", "text or json", text(&o.logFormat)},
		{"help", kindSwitch, "", "this text", toggle(&o.help)},
	}
}

// parseOptions reads the words after the program's name. Errors are one sentence that names the flag.
func parseOptions(words []string, environment func(string) string) (*options, error) {
	o := defaultOptions()
	if err := o.read(words); err != nil || o.help {
		return o, err
	}
	if len(o.apiKeys) == 0 {
		for _, key := range strings.Split(environment(keysVariable), ",") {
			if key = strings.TrimSpace(key); key != "" {
				o.apiKeys = append(o.apiKeys, key)
			}
		}
	}
	return o, o.validate()
}

func (o *options) read(words []string) error {
	specs := map[string]flagSpec{}
	for _, spec := range o.flags() {
		specs[spec.name] = spec
	}
	given := map[string]bool{}
	for len(words) > 0 {
		word := words[0]
		words = words[1:]
		if word == "-h" {
			word = "--help"
		}
		if !isFlag(word) {
			return fmt.Errorf("unexpected word '%s': flags start with --", word)
		}
		name, value, hasValue := strings.Cut(strings.TrimPrefix(word, "--"), "=")
		name = strings.ReplaceAll(name, "_", "-")
		spec, known := specs[name]
		if !known && !hasValue && strings.HasPrefix(name, "no-") {
			if spec, known = specs[name[3:]]; known && spec.kind == kindSwitch {
				value, hasValue = "false", true
			} else {
				known = false
			}
		}
		if !known {
			return fmt.Errorf("unknown flag --%s (see --help)", name)
		}
		var values []string
		switch {
		case hasValue:
			values = []string{value}
		case spec.kind == kindSwitch:
			values = []string{"true"}
		default:
			for len(words) > 0 && !isFlag(words[0]) && (spec.kind == kindList || len(values) == 0) {
				values = append(values, words[0])
				words = words[1:]
			}
		}
		if len(values) == 0 {
			return fmt.Errorf("--%s needs a value", spec.name)
		}
		if spec.kind == kindList && !given[spec.name] {
			if err := spec.set(clearList); err != nil {
				return err
			}
		}
		given[spec.name] = true
		for _, v := range values {
			if err := spec.set(v); err != nil {
				return fmt.Errorf("--%s: %w", spec.name, err)
			}
		}
		if o.help {
			return nil
		}
	}
	return nil
}

func isFlag(word string) bool { return strings.HasPrefix(word, "--") && len(word) > 2 || word == "-h" }

func (o *options) validate() error {
	if o.router == "" {
		return errors.New("--router is needed: the address of phalanx-router")
	}
	if path, unix := strings.CutPrefix(o.router, "unix:"); unix {
		if path == "" {
			return errors.New("--router: the path after 'unix:' is empty")
		}
	} else if _, port, err := net.SplitHostPort(o.router); err != nil || port == "" {
		return fmt.Errorf("--router: '%s' is not unix:PATH or HOST:PORT", o.router)
	}
	if (o.tlsCert == "") != (o.tlsKey == "") {
		return errors.New("--ssl-certfile and --ssl-keyfile are given together or not at all")
	}
	for _, key := range o.apiKeys {
		if strings.TrimSpace(key) == "" {
			return errors.New("--api-key is empty: leave the flag out to serve without keys")
		}
	}
	_, err := newLogger(nil, o.logLevel, o.logFormat)
	return err
}

func helpText() string {
	var out strings.Builder
	out.WriteString("usage: phalanx-gateway --router ADDRESS [flags]\n\n" +
		"The HTTP door of a Phalanx cluster: TLS, API keys, limits; bodies pass unread to the router.\n\nflags:\n")
	for _, spec := range defaultOptions().flags() {
		shown := spec.help
		if spec.shown != "" {
			shown += " (default: " + spec.shown + ")"
		}
		fmt.Fprintf(&out, "  --%-20s %s\n", spec.name, shown)
	}
	return out.String()
}

// clearList empties a list before its first word; no flag's value can hold it.
const clearList = "\x00"

func text(field *string) func(string) error {
	return func(t string) error { *field = t; return nil }
}

func toggle(field *bool) func(string) error {
	return func(t string) error {
		value, err := strconv.ParseBool(t)
		if err != nil {
			return fmt.Errorf("'%s' is not true or false", t)
		}
		*field = value
		return nil
	}
}

// list takes words; one that is a JSON list of strings, as vLLM's flags are written, stands for its members.
func list(field *[]string) func(string) error {
	return func(t string) error {
		var members []string
		switch {
		case t == clearList:
			*field = nil
		case strings.HasPrefix(t, "[") && json.Unmarshal([]byte(t), &members) == nil:
			*field = append(*field, members...)
		default:
			*field = append(*field, t)
		}
		return nil
	}
}

func number(field *int, low, high int) func(string) error {
	return func(t string) error {
		value, err := strconv.Atoi(t)
		if err != nil || value < low || value > high {
			return fmt.Errorf("'%s' is not a whole number from %d to %d", t, low, high)
		}
		*field = value
		return nil
	}
}

func seconds(field *time.Duration) func(string) error {
	return func(t string) error {
		value, err := strconv.ParseFloat(t, 64)
		if err != nil || !(value >= 0 && value <= 1e6) {
			return fmt.Errorf("'%s' is not a number of seconds", t)
		}
		*field = time.Duration(value * float64(time.Second))
		return nil
	}
}

// byteCount takes a whole number with the suffixes of services/options.h: k, m, g are thousands; K, M, G, Ki, Mi, Gi (and KiB ...) 1024s.
func byteCount(field *int64, low, high int64) func(string) error {
	units := map[string]int64{"": 1, "k": 1e3, "m": 1e6, "g": 1e9, "K": 1 << 10, "M": 1 << 20, "G": 1 << 30}
	return func(t string) error {
		digits := strings.TrimRight(t, "kmgKMGiB")
		unit, known := units[strings.TrimSuffix(strings.TrimSuffix(t[len(digits):], "B"), "i")]
		value, err := strconv.ParseInt(digits, 10, 64)
		if err != nil || !known || value > high/unit || value*unit < low {
			return fmt.Errorf("'%s' is not a number of bytes from %d to %d", t, low, high)
		}
		*field = value * unit
		return nil
	}
}
