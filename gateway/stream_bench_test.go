package main

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// The cost of a streamed chunk and of a plain request through the gateway, with client and fake router in the same process. The figure
// to look at is cpu-us/op, which other load on the machine moves least:  go test -run '^$' -bench . -benchtime 2s

var benchChunk = []byte(`data: {"id":"chatcmpl-0123456789abcdef0123456789abcdef","object":"chat.completion.chunk","created":1790000000,` +
	`"model":"demo","choices":[{"index":0,"delta":{"content":" word"},"logprobs":null,"finish_reason":null}]}` + "\n\n")

func cpuTime() time.Duration {
	var use syscall.Rusage
	_ = syscall.Getrusage(syscall.RUSAGE_SELF, &use)
	return time.Duration(use.Utime.Nano() + use.Stime.Nano())
}

func reportCPU(b *testing.B, from time.Duration) {
	b.ReportMetric(float64((cpuTime()-from).Microseconds())/float64(b.N), "cpu-us/op")
}

func quiet(o *options) { o.logLevel = "error" }

func BenchmarkStreamedChunk(b *testing.B) {
	for _, clients := range []int{1, 16, 64} {
		b.Run(fmt.Sprintf("clients=%d", clients), func(b *testing.B) {
			c := newCluster(b, quiet)
			each := b.N/clients + 1
			c.router.on(func(_ *body, out stream) error {
				for range each {
					if err := out.Send(&body{ContentType: "text/event-stream", Data: benchChunk}); err != nil {
						return err
					}
				}
				return nil
			})
			client := http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: clients}}
			b.ResetTimer()
			start := cpuTime()
			var all sync.WaitGroup
			for range clients {
				all.Add(1)
				go func() {
					defer all.Done()
					response, err := client.Post(c.url+"/v1/chat/completions", "", strings.NewReader("{}"))
					if err != nil {
						b.Error(err)
						return
					}
					defer response.Body.Close()
					if n, err := io.Copy(io.Discard, response.Body); err != nil || n != int64(each*len(benchChunk)) {
						b.Errorf("%d bytes, %v", n, err)
					}
				}()
			}
			all.Wait()
			reportCPU(b, start)
		})
	}
}

func BenchmarkPlainRequest(b *testing.B) {
	c := newCluster(b, quiet)
	reply := bytes.Repeat([]byte("x"), 500)
	c.router.on(func(_ *body, out stream) error { return out.Send(&body{ContentType: "application/json", Data: reply}) })
	request := strings.Repeat("x", 1000)
	b.ResetTimer()
	start := cpuTime()
	for range b.N {
		response, err := http.Post(c.url+"/v1/completions", "", strings.NewReader(request))
		if err != nil {
			b.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, response.Body); err != nil || n != 500 {
			b.Fatalf("%d bytes, %v", n, err)
		}
		response.Body.Close()
	}
	reportCPU(b, start)
}
