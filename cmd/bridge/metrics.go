package main

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/prometheus/client_golang/prometheus" // the metrics format that operators have
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/queuestream/broker/bridge"
)

const lagTimeout = 5 * time.Second

// metrics exports the routes' numbers; counters and gauges are read at the
// scrape, the latency is observed.
type metrics struct {
	routes   []*bridge.Route
	registry *prometheus.Registry
	seconds  *prometheus.HistogramVec
}

var (
	recordsDesc = prometheus.NewDesc("bridge_records_total", "Records by what became of them (in: taken up).", []string{"route", "outcome"}, nil)
	retriesDesc = prometheus.NewDesc("bridge_retries_total", "Tries that failed and were repeated.", []string{"route"}, nil)
	dupDesc     = prometheus.NewDesc("bridge_duplicates_avoided_total", "Tasks that the queue had already and suppressed, as far as it tells: SQS does not.", []string{"route"}, nil)
	claimedDesc = prometheus.NewDesc("bridge_claim_checks_total", "Bodies put into the blob store.", []string{"route"}, nil)
	windowDesc  = prometheus.NewDesc("bridge_window_records", "Records in hand or done beyond the commit: what a crash would send again.", []string{"route"}, nil)
	ageDesc     = prometheus.NewDesc("bridge_window_age_seconds", "Age of the oldest of them.", []string{"route"}, nil)
	pausedDesc  = prometheus.NewDesc("bridge_paused", "1 while the route is paused.", []string{"route"}, nil)
	haltedDesc  = prometheus.NewDesc("bridge_halted", "1 once the route has halted.", []string{"route"}, nil)
	batchDesc   = prometheus.NewDesc("bridge_batch_tasks", "Tasks in a request to the queue, where it takes several.", []string{"route"}, nil)
	lagDesc     = prometheus.NewDesc("bridge_lag_records", "Records between the group's commit and the end of the partition.", []string{"route", "partition"}, nil)
)

func newMetrics(routes []*bridge.Route) *metrics {
	m := &metrics{
		routes:   routes,
		registry: prometheus.NewRegistry(),
		seconds: prometheus.NewHistogramVec(prometheus.HistogramOpts{
			Name: "bridge_handle_seconds", Help: "Time from taking a record up to its outcome, for each try.",
			Buckets: prometheus.ExponentialBuckets(0.0005, 2, 16),
		}, []string{"route", "outcome"}),
	}
	m.registry.MustRegister(m, m.seconds, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *metrics) observe(e bridge.Event) {
	m.seconds.WithLabelValues(e.Route, string(e.Kind)).Observe(e.Took.Seconds())
}

func (m *metrics) handler() http.Handler {
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{})
}

// Describe implements prometheus.Collector.
func (m *metrics) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range []*prometheus.Desc{recordsDesc, retriesDesc, dupDesc, claimedDesc, windowDesc, ageDesc, pausedDesc, haltedDesc, batchDesc, lagDesc} {
		ch <- d
	}
}

// Collect implements prometheus.Collector. The lag is left out of a scrape
// when the broker does not answer in time.
func (m *metrics) Collect(ch chan<- prometheus.Metric) {
	ctx, cancel := context.WithTimeout(context.Background(), lagTimeout)
	defer cancel()
	counter := func(d *prometheus.Desc, n int64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.CounterValue, float64(n), labels...)
	}
	gauge := func(d *prometheus.Desc, v float64, labels ...string) {
		ch <- prometheus.MustNewConstMetric(d, prometheus.GaugeValue, v, labels...)
	}
	for _, rt := range m.routes {
		s := rt.Stats()
		counter(recordsDesc, s.In, rt.Name, "in")
		counter(recordsDesc, s.Enqueued, rt.Name, string(bridge.Enqueued))
		counter(recordsDesc, s.Filtered, rt.Name, string(bridge.Filtered))
		counter(recordsDesc, s.Parked, rt.Name, string(bridge.Parked))
		counter(recordsDesc, s.Skipped, rt.Name, string(bridge.Skipped))
		counter(retriesDesc, s.Retried, rt.Name)
		counter(dupDesc, s.Duplicates, rt.Name)
		counter(claimedDesc, s.Claimed, rt.Name)
		gauge(windowDesc, float64(s.WindowRecords), rt.Name)
		gauge(ageDesc, s.WindowAge.Seconds(), rt.Name)
		gauge(pausedDesc, flag(s.Paused), rt.Name)
		gauge(haltedDesc, flag(s.Halted != nil), rt.Name)
		if len(s.BatchSizes) > 0 {
			ch <- batchHistogram(s.BatchSizes, rt.Name)
		}
		lag, err := rt.Lag(ctx)
		if err != nil {
			continue
		}
		for _, l := range lag {
			gauge(lagDesc, float64(l.Lag), rt.Name, strconv.Itoa(int(l.Partition)))
		}
	}
}

// batchHistogram makes a histogram with a bucket for each size.
func batchHistogram(sizes []int64, route string) prometheus.Metric {
	buckets := make(map[float64]uint64, len(sizes))
	count, sum := uint64(0), 0.0
	for n, requests := range sizes {
		count += uint64(requests) //nolint:gosec // a count
		sum += float64(n) * float64(requests)
		if n > 0 {
			buckets[float64(n)] = count
		}
	}
	return prometheus.MustNewConstHistogram(batchDesc, count, sum, buckets, route)
}

func flag(b bool) float64 {
	if b {
		return 1
	}
	return 0
}
