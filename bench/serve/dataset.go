package main

import (
	"bufio"
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"strings"
)

// Request is one thing to ask for: ids or a text, never both.
type Request struct {
	IDs       []int
	Text      string
	InputLen  int // tokens that the prompt should have; the server's own count wins in the report
	OutputLen int
}

// Ids below this are left alone: models keep their end and padding tokens there.
const firstRandomID = 10

// The words of random texts; each is about one token in any vocabulary.
var words = strings.Fields(`time year people way day man thing woman life child world school state family student group country
problem hand part place case week company system program question work government number night point home water room mother area
money story fact month lot right study book eye job word business issue side kind head house service friend father power hour game
line end member law car city community name president team minute idea body information back parent face others level office door`)

func newRand(seed int64, stream uint64) *rand.Rand {
	return rand.New(rand.NewPCG(uint64(seed), stream))
}

// makeRequests is a pure function of the options, but for the file of a custom set.
func makeRequests(o Options) ([]Request, error) {
	switch o.DatasetName {
	case "custom":
		return customRequests(o)
	case "sharegpt-like":
		return sharegptLike(o), nil
	default:
		return randomRequests(o), nil
	}
}

// uniform draws a length in [floor(n (1 - ratio)), ceil(n (1 + ratio))], at least 1.
func uniform(r *rand.Rand, n int, ratio float64) int {
	low, high := int(math.Floor(float64(n)*(1-ratio))), int(math.Ceil(float64(n)*(1+ratio)))
	return max(1, low+r.IntN(high-low+1))
}

func randomRequests(o Options) []Request {
	r := newRand(o.Seed, 1)
	prefix := newPrompt(newRand(o.Seed, 2), o, o.PrefixLen)
	out := make([]Request, o.NumPrompts)
	for i := range out {
		input, output := uniform(r, o.InputLen, o.RangeRatio), uniform(r, o.OutputLen, o.RangeRatio)
		out[i] = join(prefix, newPrompt(r, o, input))
		out[i].OutputLen = output
	}
	return out
}

// sharegptLike draws lengths like those of the filtered ShareGPT set that serving benchmarks use: log-normal, prompts of 45 tokens
// in the middle and 170 on average, answers of 120 and 200; at most 1024 each.
func sharegptLike(o Options) []Request {
	r := newRand(o.Seed, 3)
	out := make([]Request, o.NumPrompts)
	for i := range out {
		input := min(1024, max(4, int(45*math.Exp(2.0*r.NormFloat64()))))
		output := min(1024, max(4, int(120*math.Exp(1.1*r.NormFloat64()))))
		out[i] = newPrompt(r, o, input)
		out[i].OutputLen = output
	}
	return out
}

func newPrompt(r *rand.Rand, o Options, n int) Request {
	if o.Backend == "openai" {
		ids := make([]int, n)
		for i := range ids {
			ids[i] = firstRandomID + r.IntN(o.VocabSize-firstRandomID)
		}
		return Request{IDs: ids, InputLen: n}
	}
	var text strings.Builder
	for i := range n {
		if i > 0 {
			text.WriteByte(' ')
		}
		text.WriteString(words[r.IntN(len(words))])
	}
	return Request{Text: text.String(), InputLen: n}
}

func join(a, b Request) Request {
	text := a.Text + b.Text
	if a.Text != "" && b.Text != "" {
		text = a.Text + " " + b.Text
	}
	return Request{IDs: append(append([]int{}, a.IDs...), b.IDs...), Text: text, InputLen: a.InputLen + b.InputLen}
}

func customRequests(o Options) ([]Request, error) {
	file, err := os.Open(o.DatasetPath)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	var out []Request
	lines := bufio.NewScanner(file)
	lines.Buffer(nil, 64<<20)
	for number := 1; lines.Scan() && len(out) < o.NumPrompts; number++ {
		if strings.TrimSpace(lines.Text()) == "" {
			continue
		}
		var row struct {
			Prompt       string `json:"prompt"`
			OutputTokens int    `json:"output_tokens"`
		}
		if err := json.Unmarshal(lines.Bytes(), &row); err != nil {
			return nil, fmt.Errorf("%s:%d: %w", o.DatasetPath, number, err)
		}
		if row.OutputTokens == 0 {
			row.OutputTokens = o.CustomOutput
		}
		out = append(out, Request{Text: row.Prompt, InputLen: len(strings.Fields(row.Prompt)), OutputLen: row.OutputTokens})
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%s: no prompts", o.DatasetPath)
	}
	for have := len(out); len(out) < o.NumPrompts; { // a short file is asked again from its beginning
		out = append(out, out[len(out)-have])
	}
	return out, nil
}
