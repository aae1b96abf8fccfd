package main

// metrics.go: every metric of the gateway, and its place in one text with the router's.

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	dto "github.com/prometheus/client_model/go"
	"github.com/prometheus/common/expfmt"
	"github.com/prometheus/common/model"
	"google.golang.org/protobuf/types/known/emptypb"
)

const (
	metricsTimeout = 5 * time.Second // a scraper gives up after 10
	metricsType    = "text/plain; version=0.0.4; charset=utf-8"
)

type metrics struct {
	registry *prometheus.Registry
	requests *prometheus.CounterVec
	duration *prometheus.HistogramVec
}

func newMetrics() *metrics {
	m := &metrics{
		registry: prometheus.NewRegistry(),
		requests: prometheus.NewCounterVec(prometheus.CounterOpts{Name: "http_requests_total",
			Help: "Requests answered, by route, method and HTTP status."}, []string{"handler", "method", "status"}),
		duration: prometheus.NewHistogramVec(prometheus.HistogramOpts{Name: "http_request_duration_seconds",
			Help:    "Time from the end of a request's headers to the end of its reply, in seconds.",
			Buckets: []float64{.001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10, 30, 60, 120, 300}},
			[]string{"handler", "method"}),
	}
	m.registry.MustRegister(m.requests, m.duration)
	return m
}

var knownMethods = []string{"GET", "POST", "HEAD", "OPTIONS", "PUT", "DELETE", "PATCH"}

func (m *metrics) observe(route, method string, code int, took time.Duration) {
	if !slices.Contains(knownMethods, method) {
		method = "other" // labels are bounded, whatever clients send
	}
	m.requests.WithLabelValues(route, method, strconv.Itoa(code)).Inc()
	m.duration.WithLabelValues(route, method).Observe(took.Seconds())
}

// serveMetrics answers with the router's families and ours. Without the router ours are all there is, and that is no failure:
// whoever looks for one finds the router's families missing.
func (s *server) serveMetrics(w http.ResponseWriter, r *http.Request, _ map[string]string) {
	ctx, cancel := context.WithTimeout(r.Context(), metricsTimeout)
	defer cancel()
	text, err := s.routerMetrics(ctx)
	if err != nil {
		s.log.line(levelDebug, "no metrics from the router", field{"reason", err.Error()})
	}
	own, err := s.metrics.registry.Gather()
	if err != nil {
		exchangeOf(r.Context()).refuse(internal())
		return
	}
	out, err := mergeMetrics(text, own)
	if err != nil {
		s.log.warningf("the router's metrics are malformed and left out: %v", err)
	}
	w.Header().Set("Content-Type", metricsType)
	w.WriteHeader(http.StatusOK)
	_, _ = w.Write(out)
}

func (s *server) routerMetrics(ctx context.Context) (string, error) {
	stream, err := s.relay.openai.Metrics(ctx, &emptypb.Empty{})
	if err != nil {
		return "", err
	}
	var text strings.Builder
	for {
		part, err := stream.Recv()
		if err == io.EOF {
			return text.String(), nil
		}
		if err != nil {
			return "", err
		}
		text.Write(part.GetData())
	}
}

// mergeMetrics writes both as one text in which each family stands once. Errors: `text` can not be read; the result then holds `own`.
func mergeMetrics(text string, own []*dto.MetricFamily) ([]byte, error) {
	parser := expfmt.NewTextParser(model.LegacyValidation)
	families, err := parser.TextToMetricFamilies(strings.NewReader(text))
	if err != nil {
		families = map[string]*dto.MetricFamily{}
	}
	for _, family := range own {
		there, found := families[family.GetName()]
		switch {
		case !found:
			families[family.GetName()] = family
		case there.GetType() == family.GetType():
			there.Metric = append(there.Metric, family.Metric...)
		}
	}
	names := make([]string, 0, len(families))
	for name := range families {
		names = append(names, name)
	}
	slices.Sort(names)
	var out bytes.Buffer
	for _, name := range names {
		if _, failed := expfmt.MetricFamilyToText(&out, families[name]); failed != nil && err == nil {
			err = failed
		}
	}
	return out.Bytes(), err
}
