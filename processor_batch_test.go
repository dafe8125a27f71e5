package broker_test

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/brokertest"
)

// A verdict on a record behind one of its key that failed in the same batch has
// no effect: it is handled again after that one, and dead-lettered once and in
// order.
func TestProcessorBatchVerdictsBehindAFailure(t *testing.T) {
	type try func(record, attempt int) error
	for _, tt := range []struct {
		name     string
		keys     int // of six records
		orderBy  func(*broker.Record) string
		attempts int // Retry.MaxAttempts
		down     int // calls of DeadLetter that fail
		try      try
		want     string // what was dead-lettered, in order
		handled  string // the batches, with the attempts
	}{
		{
			name: "rejected", keys: 1,
			try: func(record, attempt int) error {
				switch {
				case record == 0 && attempt == 1:
					return errBoom
				case record%2 == 1:
					return broker.Reject(errBoom)
				}
				return nil
			},
			want: "1 3 5", handled: "0/1 1/1 2/1 3/1 4/1 5/1, 0/2 1/1 2/1 3/1 4/1 5/1",
		},
		{
			name: "rejected behind a later one", keys: 1,
			try: func(record, attempt int) error {
				switch {
				case record == 2 && attempt == 1:
					return broker.RetryAfter(time.Second, errBoom)
				case record%2 == 1:
					return broker.Reject(errBoom)
				}
				return nil
			},
			want: "1 3 5", handled: "0/1 1/1 2/1 3/1 4/1 5/1, 2/2 3/1 4/1 5/1",
		},
		{
			name: "rejected behind one that is put off", keys: 1,
			try: func() try {
				snoozed := false
				return func(record, _ int) error {
					switch {
					case record == 0 && !snoozed:
						snoozed = true
						return broker.Snooze(time.Second)
					case record == 1:
						return broker.Reject(errBoom)
					}
					return nil
				}
			}(),
			want: "1", handled: "0/1 1/1 2/1 3/1 4/1 5/1, 0/1 1/1 2/1 3/1 4/1 5/1",
		},
		{
			name: "rejected behind one whose dead letter is refused", keys: 1, down: 1,
			try: func(record, _ int) error {
				if record < 2 {
					return broker.Reject(errBoom)
				}
				return nil
			},
			want: "0 1", handled: "0/1 1/1 2/1 3/1 4/1 5/1, 1/1 2/1 3/1 4/1 5/1",
		},
		{
			name: "failed, up to the last time", keys: 1, attempts: 2,
			try:     func(int, int) error { return errBoom },
			want:    "0 1 2 3 4 5",
			handled: "0/1 1/1 2/1 3/1 4/1 5/1, 0/2 1/1 2/1 3/1 4/1 5/1, 1/2 2/1 3/1 4/1 5/1, 2/2 3/1 4/1 5/1, 3/2 4/1 5/1, 4/2 5/1, 5/2",
		},
		{
			name: "rejected of another key", keys: 2,
			try: func(record, attempt int) error {
				switch {
				case record == 0 && attempt == 1:
					return errBoom
				case record == 3 || record == 4:
					return broker.Reject(errBoom)
				}
				return nil
			},
			want: "3 4", handled: "0/1 2/1 4/1 1/1 3/1 5/1, 0/2 2/1 4/1",
		},
		{
			name: "rejected of the same order", keys: 6, orderBy: func(*broker.Record) string { return "all" },
			try: func(record, attempt int) error {
				switch {
				case record == 0 && attempt == 1:
					return errBoom
				case record == 3:
					return broker.Reject(errBoom)
				}
				return nil
			},
			want: "3", handled: "0/1 1/1 2/1 3/1 4/1 5/1, 0/2 1/1 2/1 3/1 4/1 5/1",
		},
		{
			name: "rejected of none", keys: 6, orderBy: func(*broker.Record) string { return "" },
			try: func(record, attempt int) error {
				switch {
				case record == 0 && attempt == 1:
					return errBoom
				case record == 3:
					return broker.Reject(errBoom)
				}
				return nil
			},
			want: "3", handled: "0/1 1/1 2/1 3/1 4/1 5/1, 0/2",
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := brokertest.NewStream("events", 1)
				fill(t, s, 6, tt.keys)
				var dead, handled []string
				p := &broker.Processor{
					Stream: s, Group: "g", Logger: quiet, Concurrency: 1, OrderBy: tt.orderBy,
					Retry: broker.RetryPolicy{MaxAttempts: tt.attempts},
					DeadLetter: func(_ context.Context, r *broker.Record, _ error) error {
						if tt.down > 0 {
							tt.down--
							return broker.ErrUnavailable
						}
						dead = append(dead, string(r.Value))
						return nil
					},
					BatchHandler: func(_ context.Context, rs []*broker.Record) error {
						errs := make([]error, len(rs))
						var in []string
						for i, r := range rs {
							attempt := r.Info().Attempt
							in = append(in, fmt.Sprintf("%s/%d", r.Value, attempt))
							errs[i] = tt.try(int(r.Value[0]-'0'), attempt)
						}
						handled = append(handled, strings.Join(in, " "))
						return broker.NewBatchError(errs)
					},
					MaxWait: time.Second,
				}
				stop := start(t, p)
				advance(time.Minute)
				if err := stop(); err != nil {
					t.Fatal(err)
				}
				if got := strings.Join(dead, " "); got != tt.want {
					t.Errorf("dead letters %s, want %s", got, tt.want)
				}
				if got := strings.Join(handled, ", "); got != tt.handled {
					t.Errorf("handled %s, want %s", got, tt.handled)
				}
				if st := p.Stats(); s.Committed("g", 0) != 6 || st.DeadLettered != int64(len(dead)) {
					t.Errorf("committed %d of 6, stats %+v", s.Committed("g", 0), st)
				}
			})
		})
	}
}

// A Worker's batch holds one of a group at most, so that no verdict is behind
// another of its group.
func TestWorkerBatchHoldsOneOfAGroup(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ms := messages(6)
		for i := range ms {
			ms[i].GroupID = fmt.Sprint("g", i%2)
		}
		q := brokertest.NewQueue("q", ms...)
		w := &broker.Worker{
			Queue: q, Logger: quiet, Concurrency: 1, MaxWait: time.Second, Retry: broker.RetryPolicy{Min: time.Second},
			BatchHandler: func(_ context.Context, ds []*broker.Delivery) error {
				errs, groups := make([]error, len(ds)), map[string]bool{}
				for i, d := range ds {
					if groups[d.GroupID] {
						t.Errorf("two of group %s in a batch", d.GroupID)
					}
					groups[d.GroupID] = true
					switch {
					case d.ID == "0" && d.Attempt == 1:
						errs[i] = errBoom
					case d.ID == "2":
						errs[i] = broker.Reject(errBoom)
					}
				}
				return broker.NewBatchError(errs)
			},
		}
		stop := start(t, w)
		advance(time.Minute)
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if s := w.Stats(); s.Acked != 5 || s.Rejected != 1 || s.Retried != 1 || len(q.DeadLetters()) != 1 {
			t.Errorf("stats %+v, dead letters %v", s, q.DeadLetters())
		}
	})
}
