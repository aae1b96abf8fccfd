package main

import (
	"math"
	"math/rand/v2"
)

// arrivals returns when each of n requests is due, in seconds from the start, rising. Gaps are gamma-distributed with shape
// `burstiness` and mean 1 / rate (Poisson arrivals at 1), then scaled so that the last request is due at n / rate: a run has the
// rate that was asked for, whatever was drawn.
func arrivals(n int, rate, burstiness float64, seed int64) []float64 {
	due := make([]float64, n)
	if math.IsInf(rate, 1) {
		return due
	}
	r := newRand(seed, 4)
	at := 0.0
	for i := range due {
		at += gamma(r, burstiness)
		due[i] = at
	}
	scale := float64(n) / rate / at
	for i := range due {
		due[i] *= scale
	}
	return due
}

// gamma draws from the gamma distribution with this shape and scale 1. Source: Marsaglia and Tsang, "A simple method for
// generating gamma variables", ACM TOMS 26 (2000).
func gamma(r *rand.Rand, shape float64) float64 {
	if shape == 1 {
		return r.ExpFloat64()
	}
	if shape < 1 {
		return gamma(r, shape+1) * math.Pow(1-r.Float64(), 1/shape)
	}
	d := shape - 1.0/3
	c := 1 / math.Sqrt(9*d)
	for {
		x := r.NormFloat64()
		v := 1 + c*x
		if v <= 0 {
			continue
		}
		v = v * v * v
		if math.Log(1-r.Float64()) < 0.5*x*x+d-d*v+d*math.Log(v) {
			return d * v
		}
	}
}
