package differential

import (
	"os"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// seeds are the programs that every run repeats; CONFORMANCE_SEED adds one.
func seeds(t *testing.T) []uint64 {
	all := []uint64{1, 2}
	if s := os.Getenv("CONFORMANCE_SEED"); s != "" {
		seed, err := strconv.ParseUint(s, 0, 64)
		if err != nil {
			t.Fatalf("CONFORMANCE_SEED: %v", err)
		}
		all = append(all, seed)
	}
	return all
}

// The profile and the real broker carry out the same program: what each does
// is allowed, and where nothing is left open both do the same.
func TestQueuePrograms(t *testing.T) {
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			b := p.open(t)
			t.Parallel()
			for _, seed := range seeds(t) {
				var prog program
				use := func(caps broker.QueueCapabilities) program {
					if prog.sends == nil {
						prog = newProgram(seed, caps)
					}
					return prog
				}
				real := p.run(t.Context(), t, b, use, time.Second)
				var imitated []fate
				synctest.Test(t, func(t *testing.T) {
					m := openMemory(t.Context(), t, p.profile, seed)
					t.Cleanup(func() { _ = m.Close() }) // after what run cleans up
					imitated = p.run(t.Context(), t, m, use, 0)
				})
				if d := diff(real, imitated, prog, p.joinsWhenDue != ""); d != "" {
					t.Errorf("program %d, the broker and the profile:\n%s", seed, d)
				}
			}
		})
	}
}
