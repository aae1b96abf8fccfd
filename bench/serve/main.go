// phalanx-bench-serve drives any OpenAI-compatible server and reports TTFT, TPOT, ITL, end-to-end latency and throughput as
// `vllm bench serve` defines them. `phalanx-bench-serve canned` is a server of canned tokens, to measure the client itself.
//
// Files: options.go (flags), dataset.go (what is asked), schedule.go (when), sse.go and client.go (one request, the hot path),
// run.go (all of them), metrics.go (definitions), report.go (text and JSON), canned.go.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	err := command(ctx, os.Args[1:], os.Stdout)
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "phalanx-bench-serve:", err)
	os.Exit(1)
}

func command(ctx context.Context, args []string, out io.Writer) error {
	if len(args) > 0 && args[0] == "canned" {
		options, err := parseCanned(args[1:], os.Stderr)
		if err != nil {
			return err
		}
		return serveCanned(ctx, options, out)
	}
	options, err := parseOptions(args, os.Stderr)
	if err != nil {
		return err
	}
	return bench(ctx, options, out)
}

// bench runs everything and writes the report.
func bench(ctx context.Context, options Options, out io.Writer) error {
	client := newClient(options)
	model, err := client.waitReady(ctx)
	if err != nil {
		return err
	}
	if options.Model == "" {
		options.Model, client.model = model, model
	}
	requests, err := makeRequests(options)
	if err != nil {
		return err
	}
	warmups := options
	warmups.NumPrompts, warmups.Seed = options.NumWarmups, options.Seed+1<<40 // other prompts: a prefix cache stays cold
	if options.NumWarmups > 0 {
		extra, err := makeRequests(warmups)
		if err != nil {
			return err
		}
		client.runAll(ctx, extra, make([]float64, len(extra)), max(options.MaxConcurrency, 1))
	}
	due := arrivals(len(requests), options.RequestRate, options.Burstiness, options.Seed)
	outcomes, duration := client.runAll(ctx, requests, due, options.MaxConcurrency)
	if ctx.Err() != nil {
		return errors.New("interrupted")
	}
	summary := summarise(outcomes, duration, options)
	printReport(out, summary, options)
	if options.SaveResult {
		if err := saveResult(summary, outcomes, options); err != nil {
			return err
		}
	}
	if summary.Completed == 0 {
		return errors.New("no request succeeded: " + summary.FirstError)
	}
	return nil
}
