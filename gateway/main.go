// Command phalanx-gateway is the HTTP door of a Phalanx cluster: TLS, API keys, byte and connection limits, paths. It passes bodies
// unread to phalanx-router over gRPC and refuses to know what they say.
package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"

	"google.golang.org/grpc/grpclog"
)

// A small live heap and many short-lived chunks: collecting less often costs some MiB and saves a tenth of the processor.
const garbagePercent = 400

func main() {
	o, err := parseOptions(os.Args[1:], os.Getenv)
	if err != nil {
		fail(err)
	}
	if o.help {
		fmt.Print(helpText())
		return
	}
	if err := run(o); err != nil {
		fail(err)
	}
}

// fail tells the parent process why, in the form of services/ready.h.
func fail(err error) {
	printLine("PHALANX_ERROR", err.Error())
	os.Exit(1)
}

func printLine(word, text string) {
	text = strings.NewReplacer("\n", " ", "\r", " ").Replace(text)
	_, _ = io.WriteString(os.Stdout, word+" "+text+"\n")
}

func run(o *options) error {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	signal.Ignore(syscall.SIGPIPE)
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(garbagePercent)
	}
	grpclog.SetLoggerV2(grpclog.NewLoggerV2(io.Discard, io.Discard, io.Discard)) // what matters of it is logged by relay.go and mux.go
	log, err := newLogger(os.Stderr, o.logLevel, o.logFormat)
	if err != nil {
		return err
	}
	s, err := start(o, log)
	if err != nil {
		return err
	}
	log.line(levelInfo, "listening", field{"address", s.address()}, field{"router", o.router}, field{"tls", o.tlsCert != ""},
		field{"keys", int64(len(o.apiKeys))})
	printLine("PHALANX_READY", s.address())

	got := <-signals
	log.infof("%v: draining, for at most %v; a second signal ends it", got, o.shutdownTimeout)
	ctx, cancel := context.WithTimeout(context.Background(), o.shutdownTimeout)
	defer cancel()
	go func() {
		<-signals
		cancel()
	}()
	s.shutdown(ctx)
	log.infof("stopped")
	return nil
}
