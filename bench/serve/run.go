package main

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// runAll sends request i when due[i] has come and fewer than `limit` are in flight (0 = no limit), and waits for all. Bodies are
// made before the clock starts. Returns the outcomes in order and the seconds from the start to the last end.
func (c *client) runAll(ctx context.Context, requests []Request, due []float64, limit int) ([]Outcome, float64) {
	outcomes := make([]Outcome, len(requests))
	bodies := make([][]byte, len(requests))
	for i, r := range requests {
		if bodies[i], outcomes[i].Err = c.body(r); outcomes[i].Err != nil {
			return outcomes, 0
		}
	}
	if limit <= 0 || limit > len(requests) {
		limit = len(requests)
	}
	start := time.Now()
	run := func(i int) {
		began := time.Since(start).Seconds()
		outcomes[i] = c.do(ctx, requests[i], bodies[i])
		outcomes[i].Started = began
	}
	// Each sender takes the next request in order and waits until it is due: open loop and closed loop in one form.
	var next atomic.Int64
	var senders sync.WaitGroup
	for range limit {
		senders.Add(1)
		go func() {
			defer senders.Done()
			for {
				i := int(next.Add(1)) - 1
				if i >= len(requests) {
					return
				}
				if !sleepUntil(ctx, start, due[i]) {
					outcomes[i].Err = ctx.Err()
					return
				}
				run(i)
			}
		}()
	}
	senders.Wait()
	return outcomes, time.Since(start).Seconds()
}

// sleepUntil waits until `due` seconds after the start; false when the run was interrupted.
func sleepUntil(ctx context.Context, start time.Time, due float64) bool {
	wait := time.Until(start.Add(time.Duration(due * float64(time.Second))))
	if wait <= 0 {
		return ctx.Err() == nil
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
