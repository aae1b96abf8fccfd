package main

import (
	"encoding/json"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

var metricTitles = map[string]string{"ttft": "Time to First Token", "tpot": "Time per Output Token (excl. 1st token)",
	"itl": "Inter-token Latency", "e2el": "End-to-end Latency"}

func shortest(x float64) string { return strconv.FormatFloat(x, 'f', -1, 64) }

func printReport(w io.Writer, s Summary, o Options) {
	row := func(name, format string, value any) { fmt.Fprintf(w, "%-42s "+format+"\n", name+":", value) }
	title := func(text string) { fmt.Fprintln(w, "---"+text+strings.Repeat("-", max(0, 50-len(text)))) }
	fmt.Fprintln(w, "============ Serving Benchmark Result ================")
	row("Successful requests", "%d", s.Completed)
	row("Failed requests", "%d", s.Failed)
	if o.MaxConcurrency > 0 {
		row("Maximum request concurrency", "%d", o.MaxConcurrency)
	}
	if !math.IsInf(o.RequestRate, 1) {
		row("Request rate configured (RPS)", "%.2f", o.RequestRate)
	}
	row("Benchmark duration (s)", "%.2f", s.Duration)
	row("Total input tokens", "%d", s.TotalInput)
	row("Total generated tokens", "%d", s.TotalOutput)
	row("Request throughput (req/s)", "%.2f", s.RequestThroughput)
	if s.Goodput >= 0 {
		row("Request goodput (req/s)", "%.2f", s.Goodput)
	}
	row("Output token throughput (tok/s)", "%.2f", s.OutputThroughput)
	row("Peak concurrent requests", "%d", s.PeakConcurrency)
	row("Total token throughput (tok/s)", "%.2f", s.TotalThroughput)
	for _, name := range o.PercentileMetrics {
		spread, upper := s.Spreads[name], strings.ToUpper(name)
		title(metricTitles[name])
		row("Mean "+upper+" (ms)", "%.3f", spread.Mean)
		row("Median "+upper+" (ms)", "%.3f", spread.Median)
		for i, p := range o.Percentiles {
			row("P"+shortest(p)+" "+upper+" (ms)", "%.3f", spread.Percentiles[i])
		}
	}
	fmt.Fprintln(w, strings.Repeat("=", 54))
	if !s.Counted && s.Completed > 0 {
		fmt.Fprintln(w, "The server sent no usage: output tokens are counted as events.")
	}
	if s.FirstError != "" {
		fmt.Fprintln(w, "First error:", s.FirstError)
	}
}

// result is the JSON object, with the keys of vLLM's result files.
func result(s Summary, outcomes []Outcome, o Options) map[string]any {
	out := map[string]any{
		"date": time.Now().Format("20060102-150405"), "backend": o.Backend, "endpoint_type": o.Backend, "model_id": o.Model,
		"dataset_name": o.DatasetName, "num_prompts": o.NumPrompts, "burstiness": o.Burstiness, "seed": o.Seed,
		"request_rate": any(o.RequestRate), "max_concurrency": any(nil), "duration": s.Duration, "completed": s.Completed,
		"failed": s.Failed, "total_input_tokens": s.TotalInput, "total_output_tokens": s.TotalOutput,
		"request_throughput": s.RequestThroughput, "output_throughput": s.OutputThroughput,
		"total_token_throughput": s.TotalThroughput, "max_concurrent_requests": s.PeakConcurrency,
		"output_tokens_from_usage": s.Counted,
	}
	if math.IsInf(o.RequestRate, 1) {
		out["request_rate"] = "inf"
	}
	if o.MaxConcurrency > 0 {
		out["max_concurrency"] = o.MaxConcurrency
	}
	if s.Goodput >= 0 {
		out["request_goodput"] = s.Goodput
	}
	for _, name := range o.PercentileMetrics {
		spread := s.Spreads[name]
		out["mean_"+name+"_ms"], out["median_"+name+"_ms"], out["std_"+name+"_ms"] = spread.Mean, spread.Median, spread.Std
		for i, p := range o.Percentiles {
			out["p"+shortest(p)+"_"+name+"_ms"] = spread.Percentiles[i]
		}
	}
	if s.FirstError != "" {
		out["first_error"] = s.FirstError
	}
	if o.SaveDetailed {
		addDetails(out, outcomes)
	}
	return out
}

func addDetails(out map[string]any, outcomes []Outcome) {
	n := len(outcomes)
	inputs, outputs, errs := make([]int, n), make([]int, n), make([]string, n)
	ttfts, itls, starts := make([]float64, n), make([][]float64, n), make([]float64, n)
	for i, r := range outcomes {
		inputs[i], outputs[i], ttfts[i], itls[i], starts[i] = r.InputLen, r.OutputLen, r.TTFT, slices.Clone(r.ITL), r.Started
		if itls[i] == nil {
			itls[i] = []float64{}
		}
		if r.Err != nil {
			errs[i] = r.Err.Error()
		}
	}
	out["input_lens"], out["output_lens"], out["errors"] = inputs, outputs, errs
	out["ttfts"], out["itls"], out["start_times"] = ttfts, itls, starts
}

func resultPath(o Options) string {
	name := o.ResultFilename
	if name == "" {
		concurrency := ""
		if o.MaxConcurrency > 0 {
			concurrency = fmt.Sprintf("-concurrency%d", o.MaxConcurrency)
		}
		name = fmt.Sprintf("%s-%sqps%s-%s-%s.json", o.Backend, shortest(o.RequestRate), concurrency, filepath.Base(o.Model),
			time.Now().Format("20060102-150405"))
	}
	return filepath.Join(o.ResultDir, name)
}

func saveResult(s Summary, outcomes []Outcome, o Options) error {
	text, err := json.MarshalIndent(result(s, outcomes, o), "", "  ")
	if err != nil {
		return err
	}
	if o.ResultDir != "" {
		if err := os.MkdirAll(o.ResultDir, 0o755); err != nil {
			return err
		}
	}
	return os.WriteFile(resultPath(o), append(text, '\n'), 0o644)
}
