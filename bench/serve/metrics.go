package main

import (
	"math"
	"slices"
)

// Spread describes the values of one metric, in milliseconds.
type Spread struct {
	Mean, Median, Std float64
	Percentiles       []float64 // in the order of Options.Percentiles
}

// Summary is a run in figures. Definitions are those of `vllm bench serve`:
//
//	ttft  request sent -> first event with choices
//	itl   gaps between events with choices, of all requests together
//	tpot  (latency - ttft) / (output tokens - 1), of each request with more than one token
//	e2el  request sent -> last event with choices
type Summary struct {
	Completed, Failed       int
	Duration                float64
	TotalInput, TotalOutput int
	RequestThroughput       float64
	Goodput                 float64 // good requests a second; -1 when no limits were given
	OutputThroughput        float64
	TotalThroughput         float64
	PeakConcurrency         int
	Spreads                 map[string]Spread
	Counted                 bool // all output lengths are the server's own
	FirstError              string
}

func summarise(outcomes []Outcome, duration float64, o Options) Summary {
	s := Summary{Duration: duration, Goodput: -1, Counted: true, Spreads: map[string]Spread{}}
	values := map[string][]float64{"ttft": nil, "tpot": nil, "itl": nil, "e2el": nil}
	good := 0
	for _, r := range outcomes {
		if r.Err != nil {
			s.Failed++
			if s.FirstError == "" {
				s.FirstError = r.Err.Error()
			}
			continue
		}
		s.Completed++
		s.TotalInput += r.InputLen
		s.TotalOutput += r.OutputLen
		s.Counted = s.Counted && r.Counted
		tpot := 0.0
		if r.OutputLen > 1 {
			tpot = (r.Latency - r.TTFT) / float64(r.OutputLen-1)
			values["tpot"] = append(values["tpot"], tpot)
		}
		values["ttft"] = append(values["ttft"], r.TTFT)
		values["e2el"] = append(values["e2el"], r.Latency)
		values["itl"] = append(values["itl"], r.ITL...)
		if isGood(map[string]float64{"ttft": r.TTFT, "tpot": tpot, "e2el": r.Latency}, o.Goodput) {
			good++
		}
	}
	for name, all := range values {
		s.Spreads[name] = spread(all, o.Percentiles)
	}
	s.RequestThroughput = float64(s.Completed) / duration
	s.OutputThroughput = float64(s.TotalOutput) / duration
	s.TotalThroughput = float64(s.TotalInput+s.TotalOutput) / duration
	if len(o.Goodput) > 0 {
		s.Goodput = float64(good) / duration
	}
	s.PeakConcurrency = peakConcurrency(outcomes)
	return s
}

func isGood(seconds, limits map[string]float64) bool {
	for name, limit := range limits {
		if seconds[name]*1000 > limit {
			return false
		}
	}
	return true
}

func spread(seconds []float64, percentiles []float64) Spread {
	out := Spread{Percentiles: make([]float64, len(percentiles))}
	if len(seconds) == 0 {
		return out
	}
	sorted := slices.Clone(seconds)
	slices.Sort(sorted)
	sum, squares := 0.0, 0.0
	for _, v := range sorted {
		sum += v
	}
	mean := sum / float64(len(sorted))
	for _, v := range sorted {
		squares += (v - mean) * (v - mean)
	}
	out.Mean, out.Std = mean*1000, math.Sqrt(squares/float64(len(sorted)))*1000
	out.Median = percentile(sorted, 50) * 1000
	for i, p := range percentiles {
		out.Percentiles[i] = percentile(sorted, p) * 1000
	}
	return out
}

// percentile interpolates linearly between the two nearest ranks.
func percentile(sorted []float64, p float64) float64 {
	at := p / 100 * float64(len(sorted)-1)
	low := int(at)
	if low+1 >= len(sorted) {
		return sorted[len(sorted)-1]
	}
	return sorted[low] + (at-float64(low))*(sorted[low+1]-sorted[low])
}

// peakConcurrency is the most requests that were in flight together.
func peakConcurrency(outcomes []Outcome) int {
	type edge struct {
		at    float64
		delta int
	}
	var edges []edge
	for _, r := range outcomes {
		if r.Err == nil {
			edges = append(edges, edge{r.Started, 1}, edge{r.Started + r.Latency, -1})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int {
		if a.at != b.at {
			if a.at < b.at {
				return -1
			}
			return 1
		}
		return a.delta - b.delta
	})
	now, peak := 0, 0
	for _, e := range edges {
		now += e.delta
		peak = max(peak, now)
	}
	return peak
}
