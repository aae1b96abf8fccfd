package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"slices"
	"strconv"
	"strings"
)

// Options are the flags of a run, under the names and with the defaults of `vllm bench serve`.
type Options struct {
	BaseURL  string
	Host     string
	Port     int
	Backend  string // "openai": completions; "openai-chat": chat
	Endpoint string
	Model    string // empty: the first one of /v1/models
	APIKey   string

	DatasetName  string // random, sharegpt-like, custom
	DatasetPath  string
	NumPrompts   int
	InputLen     int
	OutputLen    int
	RangeRatio   float64
	PrefixLen    int
	VocabSize    int
	CustomOutput int

	RequestRate    float64 // requests a second; +Inf = all at once
	Burstiness     float64
	MaxConcurrency int // 0 = no limit
	NumWarmups     int
	Seed           int64

	IgnoreEOS   bool
	Temperature float64
	ExtraBody   map[string]any
	ReadyWait   float64 // seconds

	PercentileMetrics []string
	Percentiles       []float64
	Goodput           map[string]float64 // metric -> milliseconds

	SaveResult     bool
	SaveDetailed   bool
	ResultDir      string
	ResultFilename string
}

// Flags that take every following word up to the next flag.
var listFlags = []string{"goodput"}

// normalise turns --max_concurrency into --max-concurrency and joins the words of list flags.
func normalise(args []string) []string {
	var out []string
	for i := 0; i < len(args); i++ {
		word := args[i]
		if !strings.HasPrefix(word, "--") {
			out = append(out, word)
			continue
		}
		name, value, hasValue := strings.Cut(word, "=")
		name = strings.ReplaceAll(name, "_", "-")
		if hasValue {
			out = append(out, name+"="+value)
			continue
		}
		out = append(out, name)
		if !slices.Contains(listFlags, name[2:]) {
			continue
		}
		var words []string
		for i+1 < len(args) && !strings.HasPrefix(args[i+1], "-") {
			i++
			words = append(words, args[i])
		}
		out = append(out, strings.Join(words, " "))
	}
	return out
}

func parseOptions(args []string, errors io.Writer) (Options, error) {
	var o Options
	var rate, metrics, percentiles, goodput, extra string
	set := flag.NewFlagSet("phalanx-bench-serve", flag.ContinueOnError)
	set.SetOutput(errors)
	set.StringVar(&o.BaseURL, "base-url", "", "http://HOST:PORT; in place of --host and --port")
	set.StringVar(&o.Host, "host", "127.0.0.1", "server's host")
	set.IntVar(&o.Port, "port", 8000, "server's port")
	set.StringVar(&o.Backend, "backend", "openai", "openai (completions) or openai-chat")
	set.StringVar(&o.Endpoint, "endpoint", "", "path; default /v1/completions or /v1/chat/completions by the backend")
	set.StringVar(&o.Model, "model", "", "model name in requests; default: the first one of /v1/models")
	set.StringVar(&o.APIKey, "api-key", "", "bearer key; default: the environment's OPENAI_API_KEY")
	set.StringVar(&o.DatasetName, "dataset-name", "random", "random, sharegpt-like or custom")
	set.StringVar(&o.DatasetPath, "dataset-path", "", `JSON lines for custom: {"prompt": "...", "output_tokens": N}`)
	set.IntVar(&o.NumPrompts, "num-prompts", 1000, "requests in all")
	set.IntVar(&o.InputLen, "random-input-len", 1024, "prompt tokens of random requests")
	set.IntVar(&o.OutputLen, "random-output-len", 128, "output tokens of random requests")
	set.Float64Var(&o.RangeRatio, "random-range-ratio", 0, "lengths are uniform in len * (1 -+ ratio)")
	set.IntVar(&o.PrefixLen, "random-prefix-len", 0, "tokens of a prefix that all prompts share, before the random part")
	set.IntVar(&o.VocabSize, "random-vocab-size", 500, "random token ids are drawn below this (no tokenizer is loaded)")
	set.IntVar(&o.CustomOutput, "custom-output-len", 256, "output tokens of custom requests that name none")
	set.StringVar(&rate, "request-rate", "inf", "requests a second, open loop; inf = all at once, or closed loop with --max-concurrency")
	set.Float64Var(&o.Burstiness, "burstiness", 1, "shape of the gamma-distributed gaps: 1 = Poisson, below = more bursty")
	set.IntVar(&o.MaxConcurrency, "max-concurrency", 0, "requests in flight at most; 0 = no limit")
	set.IntVar(&o.NumWarmups, "num-warmups", 0, "requests before the clock starts, with other prompts")
	set.Int64Var(&o.Seed, "seed", 0, "of prompts and arrivals")
	set.BoolVar(&o.IgnoreEOS, "ignore-eos", false, "ask for exactly the output length")
	set.Float64Var(&o.Temperature, "temperature", 0, "sampling temperature")
	set.StringVar(&extra, "extra-body", "", "JSON object whose fields are added to every request")
	set.Float64Var(&o.ReadyWait, "ready-check-timeout-sec", 60, "wait so long for /v1/models to answer")
	set.StringVar(&metrics, "percentile-metrics", "ttft,tpot,itl", "of ttft, tpot, itl, e2el")
	set.StringVar(&percentiles, "metric-percentiles", "99", "comma-separated")
	set.StringVar(&goodput, "goodput", "", "limits in ms that make a request good: ttft:200 tpot:50 e2el:5000")
	set.BoolVar(&o.SaveResult, "save-result", false, "write the result as JSON")
	set.BoolVar(&o.SaveDetailed, "save-detailed", false, "with each request's lengths, times and errors")
	set.StringVar(&o.ResultDir, "result-dir", "", "folder of the result")
	set.StringVar(&o.ResultFilename, "result-filename", "", "name of the result; default from backend, rate, model and time")
	if err := set.Parse(normalise(args)); err != nil {
		return o, err
	}
	if set.NArg() > 0 {
		return o, fmt.Errorf("unexpected word: %s", set.Arg(0))
	}
	return o, o.finish(rate, metrics, percentiles, goodput, extra)
}

// finish parses the flags that are texts and checks all.
func (o *Options) finish(rate, metrics, percentiles, goodput, extra string) error {
	var err error
	if o.RequestRate, err = strconv.ParseFloat(rate, 64); err != nil || !(o.RequestRate > 0) {
		return fmt.Errorf("--request-rate: not a rate: %s", rate)
	}
	for _, name := range strings.Split(metrics, ",") {
		if !slices.Contains([]string{"ttft", "tpot", "itl", "e2el"}, name) {
			return fmt.Errorf("--percentile-metrics: not one of ttft, tpot, itl, e2el: %s", name)
		}
		o.PercentileMetrics = append(o.PercentileMetrics, name)
	}
	for _, text := range strings.Split(percentiles, ",") {
		p, err := strconv.ParseFloat(text, 64)
		if err != nil || p < 0 || p > 100 {
			return fmt.Errorf("--metric-percentiles: not within 0 and 100: %s", text)
		}
		o.Percentiles = append(o.Percentiles, p)
	}
	o.Goodput = map[string]float64{}
	for _, word := range strings.Fields(goodput) {
		name, text, _ := strings.Cut(word, ":")
		limit, err := strconv.ParseFloat(text, 64)
		if err != nil || !slices.Contains([]string{"ttft", "tpot", "e2el"}, name) || limit < 0 {
			return fmt.Errorf("--goodput: not METRIC:MILLISECONDS with ttft, tpot or e2el: %s", word)
		}
		o.Goodput[name] = limit
	}
	if extra != "" {
		if err := json.Unmarshal([]byte(extra), &o.ExtraBody); err != nil {
			return fmt.Errorf("--extra-body: not a JSON object: %w", err)
		}
	}
	if o.BaseURL == "" {
		o.BaseURL = fmt.Sprintf("http://%s:%d", o.Host, o.Port)
	}
	o.BaseURL = strings.TrimRight(o.BaseURL, "/")
	return o.check()
}

func (o *Options) check() error {
	paths := map[string]string{"openai": "/v1/completions", "openai-chat": "/v1/chat/completions"}
	if paths[o.Backend] == "" {
		return fmt.Errorf("--backend: not openai or openai-chat: %s", o.Backend)
	}
	if o.Endpoint == "" {
		o.Endpoint = paths[o.Backend]
	}
	switch {
	case o.NumPrompts < 1:
		return errors.New("--num-prompts must be at least 1")
	case o.InputLen < 1 || o.OutputLen < 1 || o.CustomOutput < 1:
		return errors.New("lengths must be at least 1")
	case o.PrefixLen < 0 || o.MaxConcurrency < 0 || o.NumWarmups < 0:
		return errors.New("--random-prefix-len, --max-concurrency and --num-warmups must not be negative")
	case !(o.RangeRatio >= 0 && o.RangeRatio < 1):
		return errors.New("--random-range-ratio must be in [0, 1)")
	case !(o.Burstiness > 0) || math.IsInf(o.Burstiness, 0):
		return errors.New("--burstiness must be above 0")
	case o.VocabSize <= firstRandomID:
		return fmt.Errorf("--random-vocab-size must be above %d", firstRandomID)
	case o.DatasetName == "custom" && o.DatasetPath == "":
		return errors.New("--dataset-name custom needs --dataset-path")
	case !slices.Contains([]string{"random", "sharegpt-like", "custom"}, o.DatasetName):
		return fmt.Errorf("--dataset-name: not one of random, sharegpt-like, custom: %s", o.DatasetName)
	}
	return nil
}
