package conformance

import (
	"flag"
	"io"
	"testing"
)

func TestSeedFlag(t *testing.T) {
	before := flaggedSeed.Load()
	t.Cleanup(func() { flaggedSeed.Store(before) })
	t.Setenv(seedEnv, "11")
	for _, test := range []struct {
		args []string
		own  uint64
		want uint64 // 0: refused
	}{
		{nil, 0, 11},
		{[]string{"-seed=0x10"}, 0, 16},
		{[]string{"-seed", "18446744073709551615"}, 0, 1<<64 - 1},
		{[]string{"-seed=16"}, 3, 3},
		{[]string{"-seed=0"}, 0, 0},
		{[]string{"-seed=-1"}, 0, 0},
		{[]string{"-seed=x"}, 0, 0},
	} {
		flaggedSeed.Store(0)
		fs := flag.NewFlagSet("test", flag.ContinueOnError)
		fs.SetOutput(io.Discard)
		SeedFlag(fs)
		if err := fs.Parse(test.args); (err != nil) != (test.want == 0) {
			t.Errorf("%v: %v", test.args, err)
		}
		h := realHarness("none")
		h.Seed = test.own
		if report, err := Check(t.Context(), h); test.want != 0 && (err != nil || report.Seed != test.want) {
			t.Errorf("%v: %+v, %v; want the seed %d", test.args, report, err, test.want)
		}
	}
}
