package main

import (
	"reflect"
	"strings"
	"testing"
	"time"
)

func noEnvironment(string) string { return "" }

func TestOptions(t *testing.T) {
	o, err := parseOptions(strings.Fields("--router unix:a.sock --host=::1 --port 0 --api-key one two --api-key=three --max_body_bytes 4Mi "+
		"--allow-credentials --allowed-origins [\"https://a\",\"https://b\"] --allowed-methods GET POST --shutdown-timeout 1.5 "+
		"--max-connections 9 --log-format json --log-level debug --router-connections 3"), noEnvironment)
	if err != nil {
		t.Fatal(err)
	}
	want := defaultOptions()
	want.router, want.host, want.port, want.apiKeys = "unix:a.sock", "::1", 0, []string{"one", "two", "three"}
	want.maxBodyBytes, want.allowCredentials, want.allowedOrigins = 4<<20, true, []string{"https://a", "https://b"}
	want.allowedMethods, want.shutdownTimeout = []string{"GET", "POST"}, 1500*time.Millisecond
	want.maxConnections, want.connectionsSet, want.logFormat, want.logLevel, want.routerConnections = 9, true, "json", "debug", 3
	if !reflect.DeepEqual(o, want) {
		t.Errorf("got  %+v\nwant %+v", o, want)
	}
	o, err = parseOptions(strings.Fields("--router h:1 --allow-credentials --no-allow-credentials --max-body-bytes 5k"), noEnvironment)
	if err != nil || o.allowCredentials || o.maxBodyBytes != 5000 {
		t.Errorf("%+v, %v", o, err)
	}
}

func TestKeysFromTheEnvironment(t *testing.T) {
	environment := func(name string) string { return map[string]string{keysVariable: " a, b,,"}[name] }
	for words, want := range map[string][]string{"--router h:1": {"a", "b"}, "--router h:1 --api-key c": {"c"}} {
		if o, err := parseOptions(strings.Fields(words), environment); err != nil || !reflect.DeepEqual(o.apiKeys, want) {
			t.Errorf("%s: %v, %v", words, o.apiKeys, err)
		}
	}
}

func TestBadOptionsNameTheFlag(t *testing.T) {
	for words, want := range map[string]string{
		"":                                    "--router",
		"--router":                            "--router needs a value",
		"--router nowhere":                    "--router: 'nowhere'",
		"--router unix:":                      "--router",
		"--router h:1 --port 70000":           "--port: '70000'",
		"--router h:1 --port x":               "--port",
		"--router h:1 --frobnicate 1":         "unknown flag --frobnicate",
		"--router h:1 --no-port":              "unknown flag --no-port",
		"--router h:1 word":                   "'word'",
		"--router h:1 --ssl-certfile a":       "--ssl-keyfile",
		"--router h:1 --max-body-bytes 1T":    "--max-body-bytes",
		"--router h:1 --max-body-bytes 64Mi":  "--max-body-bytes",
		"--router h:1 --max-body-bytes 0":     "--max-body-bytes",
		"--router h:1 --shutdown-timeout -1":  "--shutdown-timeout",
		"--router h:1 --shutdown-timeout NaN": "--shutdown-timeout",
		"--router h:1 --log-level loud":       "log level 'loud'",
		"--router h:1 --log-format xml":       "log format 'xml'",
		"--router h:1 --api-key=":             "--api-key",
		"--router h:1 --max-connections 0":    "--max-connections",
	} {
		if _, err := parseOptions(strings.Fields(words), noEnvironment); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("'%s': %v, want '%s'", words, err, want)
		}
	}
}

func TestHelpNamesEveryFlag(t *testing.T) {
	text := helpText()
	for _, spec := range defaultOptions().flags() {
		if !strings.Contains(text, "--"+spec.name+" ") {
			t.Errorf("--%s is missing", spec.name)
		}
	}
	if o, err := parseOptions([]string{"--port", "1", "-h", "--bad"}, noEnvironment); err != nil || !o.help {
		t.Errorf("%v", err)
	}
}
