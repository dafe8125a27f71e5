package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/pprof"
	"slices"
)

func main() {
	var o options
	run := flag.String("run", "", "only scenarios whose name matches this regular expression")
	contenders := flag.String("contenders", "", "only contenders whose name matches this regular expression, and no targets")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each contender runs")
	flag.Float64Var(&o.scale, "scale", 1, "factor on the number of messages")
	out := flag.String("out", "", "write the report to this file too")
	cpu := flag.String("cpuprofile", "", "write a CPU profile of the whole run, labelled by scenario and contender")
	allocs := flag.String("memprofile", "", "write a profile of all allocations of the whole run")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	err := profiled(*cpu, *allocs, func() error { return bench(ctx, o, *run, *contenders, *out) })
	if err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

// profiled runs do and writes the profiles whose files are named.
func profiled(cpu, allocs string, do func() error) error {
	if cpu != "" {
		f, err := os.Create(cpu)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
	}
	if err := do(); err != nil || allocs == "" {
		return err
	}
	f, err := os.Create(allocs)
	if err != nil {
		return err
	}
	return errors.Join(pprof.Lookup("allocs").WriteTo(f, 0), f.Close())
}

func bench(ctx context.Context, o options, run, contenders, out string) error {
	match, err := regexp.Compile(run)
	if err != nil {
		return err
	}
	only, err := regexp.Compile(contenders)
	if err != nil {
		return err
	}
	rep := newReport(o)
	for _, s := range scenarios() {
		if !match.MatchString(s.name) {
			continue
		}
		if why := s.missing(); why != "" {
			rep.skip(s, why)
			continue
		}
		if contenders != "" {
			s.contenders = slices.DeleteFunc(s.contenders, func(c contender) bool { return !only.MatchString(c.name) })
			s.targets = nil
		}
		res, err := measure(ctx, s, o)
		if err != nil {
			return fmt.Errorf("%s: %w", s.name, err)
		}
		rep.add(s, res)
		runtime.GC()
	}
	if out == "" {
		return nil
	}
	return os.WriteFile(out, []byte(rep.markdown()), 0o600)
}

// scenarios lists all of them in the order of the report.
func scenarios() []scenario {
	var all []scenario
	for _, group := range [][]scenario{memoryScenarios(), kafkaScenarios(), rabbitScenarios(), rabbitStreamScenarios(), sqsScenarios(), bridgeScenarios()} {
		all = append(all, group...)
	}
	return all
}
