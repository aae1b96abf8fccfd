package main

import (
	"math"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

func options(t *testing.T, args ...string) Options {
	t.Helper()
	o, err := parseOptions(args, os.Stderr)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func requests(t *testing.T, o Options) []Request {
	t.Helper()
	made, err := makeRequests(o)
	if err != nil {
		t.Fatal(err)
	}
	return made
}

func TestRandomIsSeededAndInRange(t *testing.T) {
	o := options(t, "--num-prompts", "300", "--random-input-len", "100", "--random-output-len", "10", "--random-range-ratio", "0.5",
		"--random-prefix-len", "7", "--random-vocab-size", "50")
	made := requests(t, o)
	if !reflect.DeepEqual(made, requests(t, o)) {
		t.Error("the same seed gave other requests")
	}
	o.Seed = 1
	if reflect.DeepEqual(made, requests(t, o)) {
		t.Error("another seed gave the same requests")
	}
	low, high := math.MaxInt, 0
	for _, r := range made {
		if len(r.IDs) != r.InputLen || r.Text != "" || !slices.Equal(r.IDs[:7], made[0].IDs[:7]) {
			t.Fatalf("not a prompt of ids with the shared prefix: %v", r)
		}
		if slices.Min(r.IDs) < firstRandomID || slices.Max(r.IDs) >= 50 || r.OutputLen < 5 || r.OutputLen > 15 {
			t.Fatalf("out of range: %v", r)
		}
		low, high = min(low, r.InputLen), max(high, r.InputLen)
	}
	if low < 57 || low > 65 || high > 157 || high < 149 {
		t.Errorf("input lengths from %d to %d", low, high)
	}
}

func TestChatPromptsAreWords(t *testing.T) {
	made := requests(t, options(t, "--backend", "openai-chat", "--num-prompts", "3", "--random-input-len", "20", "--random-prefix-len", "5"))
	for _, r := range made {
		if len(strings.Fields(r.Text)) != 25 || len(r.IDs) != 0 || r.InputLen != 25 {
			t.Errorf("%+v", r)
		}
	}
}

func TestShareGPTLikeLengths(t *testing.T) {
	made := requests(t, options(t, "--dataset-name", "sharegpt-like", "--num-prompts", "20000"))
	input, output := 0, 0
	for _, r := range made {
		if r.InputLen < 4 || r.InputLen > 1024 || r.OutputLen < 4 || r.OutputLen > 1024 {
			t.Fatalf("%d in, %d out", r.InputLen, r.OutputLen)
		}
		input, output = input+r.InputLen, output+r.OutputLen
	}
	for name, mean := range map[string]float64{"input": float64(input) / 20000, "output": float64(output) / 20000} {
		if mean < 110 || mean > 240 {
			t.Errorf("%s: %.0f tokens on average", name, mean)
		}
	}
}

func TestCustomFileIsRepeated(t *testing.T) {
	path := filepath.Join(t.TempDir(), "set.jsonl")
	if err := os.WriteFile(path, []byte("{\"prompt\": \"one two\", \"output_tokens\": 3}\n\n{\"prompt\": \"three\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o := options(t, "--dataset-name", "custom", "--dataset-path", path, "--num-prompts", "5", "--custom-output-len", "9")
	made := requests(t, o)
	if len(made) != 5 || made[0].Text != "one two" || made[0].OutputLen != 3 || made[1].OutputLen != 9 || made[4].Text != "one two" {
		t.Errorf("%+v", made)
	}
	if err := os.WriteFile(path, []byte("{\"prompt\": 1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := makeRequests(o); err == nil || !strings.Contains(err.Error(), ":1:") {
		t.Errorf("a bad line: %v", err)
	}
}

func TestArrivals(t *testing.T) {
	if due := arrivals(3, math.Inf(1), 1, 0); !reflect.DeepEqual(due, []float64{0, 0, 0}) {
		t.Errorf("rate inf: %v", due)
	}
	const n, rate = 20000, 50.0
	for _, burstiness := range []float64{0.3, 1, 4} {
		due := arrivals(n, rate, burstiness, 7)
		if !reflect.DeepEqual(due, arrivals(n, rate, burstiness, 7)) || reflect.DeepEqual(due, arrivals(n, rate, burstiness, 8)) {
			t.Error("arrivals are not a function of the seed")
		}
		if !slices.IsSorted(due) || math.Abs(due[n-1]-n/rate) > 1e-6 {
			t.Errorf("the last request is due at %v", due[n-1])
		}
		// Gaps of a gamma distribution: variance / mean^2 = 1 / shape.
		variance, last := 0.0, 0.0
		for _, at := range due {
			variance += math.Pow(at-last-1/rate, 2) / n
			last = at
		}
		if ratio := variance * rate * rate * burstiness; ratio < 0.9 || ratio > 1.1 {
			t.Errorf("burstiness %v: variance is %.2f of what it should be", burstiness, ratio)
		}
	}
}
