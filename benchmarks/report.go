package main

import (
	"fmt"
	"os"
	"runtime"
	"runtime/debug"
	"slices"
	"strings"
	"time"
)

// A report prints as it grows, and is written as Markdown at the end.
type report struct {
	b strings.Builder
}

func newReport(o options) *report {
	r := &report{}
	r.line("# Benchmarks")
	r.line("")
	r.line("Medians of %d interleaved runs (spread in brackets) on %d cores, %s, %s; broker and clients share the machine. Payload 256 B, every message verified. Ratios are what to read: single figures are those of a small noisy machine.",
		o.rounds, runtime.NumCPU(), runtime.Version(), time.Now().UTC().Format(time.DateOnly))
	r.line("")
	r.line("%s", versions())
	return r
}

// versions names the modules that are compared.
func versions() string {
	info, ok := debug.ReadBuildInfo()
	if !ok {
		return ""
	}
	var out []string
	for _, m := range info.Deps {
		for _, want := range []string{"twmb/franz-go", "rabbitmq/", "aws-sdk-go-v2/service/sqs", "ThreeDotsLabs/", "gocloud.dev"} {
			if strings.Contains(m.Path, want) && !strings.Contains(m.Path, "plugin") {
				out = append(out, strings.TrimPrefix(m.Path, "github.com/")+" "+m.Version)
				break
			}
		}
	}
	return strings.Join(out, ", ")
}

func (r *report) line(format string, args ...any) {
	s := fmt.Sprintf(format, args...)
	fmt.Println(s)
	r.b.WriteString(s + "\n")
}

func (r *report) markdown() string { return r.b.String() }

func (r *report) skip(s scenario, why string) {
	r.line("\n## %s\n\nNot run: %s.", s.name, why)
	fmt.Fprintln(os.Stderr, "skipped", s.name, why)
}

func (r *report) add(s scenario, res []result) {
	r.line("\n## %s\n\n%s\n", s.name, s.what)
	base := median(res[0].samples, throughput)
	r.line("| | msg/s | × %s | CPU µs/msg | allocs/msg | p50 / p99 |", res[0].contender)
	r.line("|---|---|---|---|---|---|")
	for _, c := range res {
		rates := make([]float64, len(c.samples))
		for i, x := range c.samples {
			rates[i] = x.perSecond
		}
		slices.Sort(rates)
		lat := "—"
		if p99 := median(c.samples, func(s sample) time.Duration { return s.p99 }); p99 > 0 {
			lat = fmt.Sprintf("%v / %v", median(c.samples, func(s sample) time.Duration { return s.p50 }), p99)
		}
		m := median(c.samples, throughput)
		r.line("| %s | %s (%s–%s) | %.2f | %.2f | %.1f | %s |", c.contender, human(m), human(rates[0]), human(rates[len(rates)-1]),
			m/base, median(c.samples, func(s sample) float64 { return s.cpu }), median(c.samples, func(s sample) float64 { return s.allocs }), lat)
	}
	for _, t := range s.targets {
		r.target(t, res)
	}
}

func (r *report) target(t target, res []result) {
	find := func(name string) []sample {
		for _, c := range res {
			if c.contender == name {
				return c.samples
			}
		}
		panic("no contender " + name)
	}
	verdict := func(ok bool) string {
		if ok {
			return "met"
		}
		return "**missed**"
	}
	of := find(t.of)
	switch {
	case t.figure > 0:
		got := median(of, throughput) / t.figure
		r.line("\n- %s ≥ %.2f × %s, %s/s: %.2f, %s", t.of, t.atLeast, t.over, human(t.figure), got, verdict(got >= t.atLeast))
	case t.atLeast > 0:
		// The ratio of each round, since its contenders ran close together.
		over := find(t.over)
		ratios := make([]float64, len(of))
		for i := range of {
			ratios[i] = of[i].perSecond / over[i].perSecond
		}
		slices.Sort(ratios)
		got := ratios[len(ratios)/2]
		r.line("\n- %s ≥ %.2f × %s: %.2f (%.2f–%.2f), %s", t.of, t.atLeast, t.over, got, ratios[0], ratios[len(ratios)-1], verdict(got >= t.atLeast))
	case t.maxCPU > 0:
		got := median(of, func(s sample) float64 { return s.cpu }) / median(find(t.over), func(s sample) float64 { return s.cpu })
		r.line("\n- CPU a message of %s ≤ %.2f × %s: %.2f, %s", t.of, t.maxCPU, t.over, got, verdict(got <= t.maxCPU))
	case t.maxAllocs > 0:
		got := median(of, func(s sample) float64 { return s.allocs })
		r.line("\n- %s: at most %.0f allocations a message: %.2f, %s", t.of, t.maxAllocs, got, verdict(got <= t.maxAllocs+0.05))
	case t.maxP99Ratio > 0:
		p99 := func(ss []sample) float64 { return float64(median(ss, func(s sample) time.Duration { return s.p99 })) }
		got := p99(of) / p99(find(t.over))
		r.line("\n- p99 of %s ≤ %.2f × %s: %.2f, %s", t.of, t.maxP99Ratio, t.over, got, verdict(got <= t.maxP99Ratio))
	case t.maxP99 > 0:
		got := median(of, func(s sample) time.Duration { return s.p99 })
		r.line("\n- %s: p99 at most %v: %v, %s", t.of, t.maxP99, got, verdict(got <= t.maxP99))
	}
}

func human(f float64) string {
	switch {
	case f >= 1e6:
		return fmt.Sprintf("%.2fM", f/1e6)
	case f >= 1e4:
		return fmt.Sprintf("%.0fk", f/1e3)
	case f >= 1e3:
		return fmt.Sprintf("%.1fk", f/1e3)
	}
	return fmt.Sprintf("%.0f", f)
}
