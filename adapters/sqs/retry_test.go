package sqs

import (
	"math"
	"testing"
	"testing/synctest"

	"github.com/queuestream/broker"
)

func TestBackoffIsBounded(t *testing.T) {
	for _, tries := range []int{math.MinInt, -1, 0, 1, 2, 7, 8, 9, 63, 64, math.MaxInt16 + 1, math.MaxInt} {
		if d := backoff(tries); d < firstBackoff/2 || d > maxBackoff {
			t.Errorf("%d tries: %v", tries, d)
		}
	}
}

// An outage of two days is tens of thousands of tries.
func TestTriesDoNotRunOut(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFake()
		q := openQueue(t, openFake(t, f), "q", nil)
		p := &publication{
			s: q.sends, ctx: t.Context(), ws: []wire{{body: "x"}}, seqs: make([]string, 1), errs: make([]error, 1),
			state: []publishing{{tries: math.MaxInt16}}, left: 1, done: make(chan struct{}),
		}
		p.finish(0, "", &failure{kind: broker.ErrUnavailable, retry: true})
		<-p.done
		if n := f.depth("q"); n != 1 || p.errs[0] != nil {
			t.Errorf("%d messages are stored, %v", n, p.errs[0])
		}
	})
}
