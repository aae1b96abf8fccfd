package main

import (
	"encoding/json"
	"errors"
	"math"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestPercentileIsLinear(t *testing.T) {
	sorted := []float64{1, 2, 3, 4}
	for p, want := range map[float64]float64{0: 1, 50: 2.5, 75: 3.25, 99: 3.97, 100: 4} {
		near(t, "percentile", percentile(sorted, p), want)
	}
	near(t, "of one", percentile([]float64{7}, 99), 7)
}

// Two good requests, one of one token, one failure.
var sample = []Outcome{
	{Started: 0, TTFT: 0.1, Latency: 0.5, ITL: []float64{0.1, 0.3}, InputLen: 10, OutputLen: 5, Counted: true},
	{Started: 0.2, TTFT: 0.2, Latency: 1.2, ITL: []float64{1}, InputLen: 20, OutputLen: 3, Counted: true},
	{Started: 0.9, TTFT: 0.3, Latency: 0.3, InputLen: 30, OutputLen: 1, Counted: true},
	{Started: 0.95, InputLen: 40, OutputLen: 99, Err: errors.New("HTTP 503: busy")},
}

func TestDefinitions(t *testing.T) {
	o := Options{Percentiles: []float64{50, 90}, Goodput: map[string]float64{"ttft": 250, "tpot": 200}}
	s := summarise(sample, 2, o)
	if s.Completed != 3 || s.Failed != 1 || s.TotalInput != 60 || s.TotalOutput != 9 || s.FirstError != "HTTP 503: busy" {
		t.Errorf("counts: %+v", s)
	}
	near(t, "requests a second", s.RequestThroughput, 1.5)
	near(t, "output tokens a second", s.OutputThroughput, 4.5)
	near(t, "tokens a second", s.TotalThroughput, 34.5)
	// 0.4 s over 4 gaps = 100 ms; 1 s over 2 = 500 ms; one token has none.
	near(t, "mean tpot", s.Spreads["tpot"].Mean, 300)
	near(t, "mean ttft", s.Spreads["ttft"].Mean, 200)
	near(t, "p90 ttft", s.Spreads["ttft"].Percentiles[1], 280)
	near(t, "median itl", s.Spreads["itl"].Median, 300)
	near(t, "std of e2el", s.Spreads["e2el"].Std, 1000*math.Sqrt((0.5*0.5+1.2*1.2+0.3*0.3)/3-math.Pow(2.0/3, 2)))
	near(t, "goodput: the first one alone", s.Goodput, 0.5)
	if s.PeakConcurrency != 2 {
		t.Errorf("peak concurrency %d", s.PeakConcurrency)
	}
	if none := summarise(sample, 2, Options{}); none.Goodput != -1 {
		t.Errorf("goodput without limits: %v", none.Goodput)
	}
}

func TestResultFile(t *testing.T) {
	o, err := parseOptions([]string{"--save-result", "--save-detailed", "--result-dir", t.TempDir() + "/new", "--result-filename", "r.json",
		"--max_concurrency=4", "--metric-percentiles", "50,99.9", "--percentile-metrics", "ttft,e2el", "--goodput", "ttft:1", "tpot:2", "--seed", "3"}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	if o.Goodput["ttft"] != 1 || o.Goodput["tpot"] != 2 || o.Seed != 3 || o.MaxConcurrency != 4 {
		t.Fatalf("%+v", o)
	}
	if err := saveResult(summarise(sample, 2, o), sample, o); err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(o.ResultDir, "r.json"))
	if err != nil {
		t.Fatal(err)
	}
	var got map[string]any
	if err := json.Unmarshal(text, &got); err != nil {
		t.Fatal(err)
	}
	for key, want := range map[string]any{"completed": 3.0, "failed": 1.0, "request_rate": "inf", "max_concurrency": 4.0, "mean_ttft_ms": 200.0,
		"output_throughput": 4.5, "request_goodput": 0.0, "num_prompts": 1000.0} {
		if number, is := want.(float64); is {
			near(t, key, got[key].(float64), number)
		} else if got[key] != want {
			t.Errorf("%s: %v, want %v", key, got[key], want)
		}
	}
	for _, key := range []string{"p50_ttft_ms", "p99.9_e2el_ms", "std_e2el_ms", "median_ttft_ms", "date", "itls", "input_lens"} {
		if _, there := got[key]; !there {
			t.Errorf("%s is missing", key)
		}
	}
	if _, there := got["mean_itl_ms"]; there {
		t.Error("a metric that was not asked for")
	}
	if errs := got["errors"].([]any); errs[3] != "HTTP 503: busy" || errs[0] != "" {
		t.Errorf("errors: %v", errs)
	}
}

func TestReportNamesWhatWasAskedFor(t *testing.T) {
	o, err := parseOptions([]string{"--percentile-metrics", "tpot", "--metric-percentiles", "95"}, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	var text strings.Builder
	printReport(&text, summarise(sample, 2, o), o)
	for _, part := range []string{"P95 TPOT (ms)", "Failed requests:", "HTTP 503: busy"} {
		if !strings.Contains(text.String(), part) {
			t.Errorf("no %q in\n%s", part, text.String())
		}
	}
	if strings.Contains(text.String(), "TTFT") {
		t.Error("a metric that was not asked for")
	}
}

func TestBadFlagsAreRefused(t *testing.T) {
	for _, args := range [][]string{{"--backend", "vllm2"}, {"--request-rate", "0"}, {"--request-rate", "x"}, {"--goodput", "itl:3"}, {"--num-prompts", "0"},
		{"--random-range-ratio", "1"}, {"--metric-percentiles", "101"}, {"--dataset-name", "custom"}, {"--burstiness", "0"}, {"word"}, {"--no-such-flag"},
		{"--percentile-metrics", "ttft,x"}, {"--extra-body", "[1]"}, {"--dataset-name", "sonnet"}} {
		if _, err := parseOptions(args, new(strings.Builder)); err == nil {
			t.Errorf("%v was taken", args)
		}
	}
}
