package clock

import (
	"testing"
	"testing/synctest"
	"time"
)

// It never runs away from time.Now, beyond what a renewal may correct.
func TestNowFollowsTheWallClock(t *testing.T) {
	const slack = int64(10 * time.Millisecond)
	for end := time.Now().Add(3 * renewal); time.Now().Before(end); {
		before := time.Now().UnixNano()
		got := Now()
		after := time.Now().UnixNano()
		if got < before-slack || got > after+slack {
			t.Fatalf("%d is not between %d and %d", got, before, after)
		}
	}
}

// Bubbles have their own time, whatever was read outside or in another one.
func TestNowInABubble(t *testing.T) {
	exact := func(t *testing.T) {
		if got, want := Now(), time.Now().UnixNano(); got != want {
			t.Errorf("%d, want %d", got, want)
		}
	}
	Now()
	for range 2 {
		synctest.Test(t, func(t *testing.T) {
			exact(t)
			for _, d := range []time.Duration{1, renewal - 1, renewal, time.Hour, 200 * 365 * 24 * time.Hour} {
				time.Sleep(d)
				exact(t)
			}
		})
		if d := time.Since(time.Unix(0, Now())).Abs(); d > time.Second {
			t.Errorf("outside of the bubble it is %v off", d)
		}
	}
}

func BenchmarkNow(b *testing.B) {
	b.Run("clock", func(b *testing.B) {
		for b.Loop() {
			Now()
		}
	})
	b.Run("time", func(b *testing.B) {
		for b.Loop() {
			_ = time.Now().UnixNano()
		}
	})
}
