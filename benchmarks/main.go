package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"regexp"
	"runtime"
	"runtime/pprof"
)

func main() {
	var o options
	run := flag.String("run", "", "only scenarios whose name matches this regular expression")
	flag.IntVar(&o.rounds, "rounds", 5, "how often each contender runs")
	flag.Float64Var(&o.scale, "scale", 1, "factor on the number of messages")
	out := flag.String("out", "", "write the report to this file too")
	profile := flag.String("cpuprofile", "", "write a CPU profile of the whole run, labelled by scenario and contender")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt)
	defer stop()
	if err := bench(ctx, o, *run, *out, *profile); err != nil {
		fmt.Fprintln(os.Stderr, "benchmarks:", err)
		os.Exit(1)
	}
}

func bench(ctx context.Context, o options, run, out, profile string) error {
	match, err := regexp.Compile(run)
	if err != nil {
		return err
	}
	if profile != "" {
		f, err := os.Create(profile)
		if err != nil {
			return err
		}
		defer f.Close()
		if err := pprof.StartCPUProfile(f); err != nil {
			return err
		}
		defer pprof.StopCPUProfile()
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
