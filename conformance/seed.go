package conformance

import (
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"sync/atomic"
)

const seedEnv = "CONFORMANCE_SEED"

// flaggedSeed is the value of -seed; 0: not given.
var flaggedSeed atomic.Uint64

// SeedFlag defines the flag -seed in fs: the seed of every run whose Harness
// has none. Call it before the flags are parsed, in a test's TestMain say:
//
//	func TestMain(m *testing.M) {
//		conformance.SeedFlag(flag.CommandLine)
//		os.Exit(m.Run())
//	}
func SeedFlag(fs *flag.FlagSet) {
	fs.Func("seed", "the `number` that a conformance run makes its random choices by, to repeat that run (or the environment's "+seedEnv+")", func(s string) error {
		seed, err := parseSeed(s)
		if err == nil {
			flaggedSeed.Store(seed)
		}
		return err
	})
}

func parseSeed(s string) (uint64, error) {
	seed, err := strconv.ParseUint(s, 0, 64)
	if err != nil || seed == 0 {
		return 0, fmt.Errorf("seed %q: want a number from 1 to 2^64-1", s)
	}
	return seed, nil
}

// seed returns the harness' seed: its own, that of the flag, of the
// environment, or a random one.
func (h *Harness) seed() (uint64, error) {
	if h.Seed != 0 {
		return h.Seed, nil
	}
	if seed := flaggedSeed.Load(); seed != 0 {
		return seed, nil
	}
	if s := os.Getenv(seedEnv); s != "" {
		seed, err := parseSeed(s)
		if err != nil {
			return 0, fmt.Errorf("conformance: %s: %w", seedEnv, err)
		}
		return seed, nil
	}
	return rand.Uint64() | 1, nil //nolint:gosec // a test's random choices
}
