package main

import (
	"strings"
	"testing"
)

const routerText = `# HELP vllm:num_requests_running Running.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="demo"} 3
# HELP http_requests_total Theirs.
# TYPE http_requests_total counter
http_requests_total{handler="router",method="RPC",status="0"} 5
# HELP vllm:time_to_first_token_seconds Time.
# TYPE vllm:time_to_first_token_seconds histogram
vllm:time_to_first_token_seconds_bucket{le="0.1"} 1
vllm:time_to_first_token_seconds_bucket{le="+Inf"} 2
vllm:time_to_first_token_seconds_sum 0.5
vllm:time_to_first_token_seconds_count 2
`

func TestMetricsAreMerged(t *testing.T) {
	c := newCluster(t)
	c.router.metrics = routerText
	c.router.on(func(_ *body, out stream) error { return out.Send(plain("{}")) })
	c.do("POST", "/v1/completions", "{}")
	c.do("POST", "/v1/completions", "{}")
	c.do("GET", "/v1/models/a/b", "")
	c.do("GET", "/nowhere/1", "")
	c.do("BREW", "/nowhere/2", "")
	r := c.do("GET", "/metrics", "")
	c.want(r, 200, "")
	if r.Header.Get("Content-Type") != metricsType {
		t.Errorf("content type '%s'", r.Header.Get("Content-Type"))
	}
	for _, line := range []string{
		`vllm:num_requests_running{engine="0",model_name="demo"} 3`,
		`vllm:time_to_first_token_seconds_bucket{le="+Inf"} 2`,
		`http_requests_total{handler="router",method="RPC",status="0"} 5`,
		`http_requests_total{handler="/v1/completions",method="POST",status="200"} 2`,
		`http_requests_total{handler="/v1/models/{id}",method="GET",status="200"} 1`,
		`http_requests_total{handler="other",method="GET",status="404"} 1`,
		`http_requests_total{handler="other",method="other",status="404"} 1`,
		`http_request_duration_seconds_count{handler="/v1/completions",method="POST"} 2`,
	} {
		if !strings.Contains(r.body, line+"\n") {
			t.Errorf("no line %s in\n%s", line, r.body)
		}
	}
	for _, family := range []string{"http_requests_total", "vllm:num_requests_running", "vllm:time_to_first_token_seconds"} {
		if n := strings.Count(r.body, "# TYPE "+family+" "); n != 1 {
			t.Errorf("%s has %d types", family, n)
		}
	}
}

func TestMalformedMetricsLeaveOurs(t *testing.T) {
	c := newCluster(t)
	c.router.metrics = "this is { not a metric\n"
	c.do("GET", "/v1/models", "")
	c.want(c.do("GET", "/metrics", ""), 200, `http_requests_total{handler="/v1/models",method="GET",status="200"} 1`)
	if !strings.Contains(c.log.String(), "malformed") {
		t.Error("not in the log")
	}
	c.router.metrics = "# TYPE http_requests_total gauge\nhttp_requests_total 1\n" // another type under our name
	c.want(c.do("GET", "/metrics", ""), 200, "# TYPE http_requests_total gauge")
}
