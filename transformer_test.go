package broker_test

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/queuestream/broker"
)

// A handler may emit from several goroutines at once. What one of them emits
// once the handler has returned goes nowhere, and leaves no transaction open.
func TestTransformerEmitsFromManyGoroutines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openMemory(t)
		in, out := declareStream(t, b, "in", 1), declareStream(t, b, "out", 1)
		var late sync.WaitGroup
		returned := make(chan struct{})
		errs := make(chan error, 1)
		tr := &broker.Transformer{
			Broker: b, Source: in, Group: "g", ID: "x", Logger: quiet,
			Handler: func(_ context.Context, rs []*broker.Record, emit func(broker.Stream, ...broker.Record) error) error {
				if string(rs[0].Value) == "late" {
					late.Go(func() {
						<-returned
						errs <- emit(out, broker.Record{Value: []byte("late")})
					})
					return nil
				}
				var wg sync.WaitGroup
				for i := range 8 {
					wg.Go(func() {
						if err := emit(out, broker.Record{Value: fmt.Append(nil, i)}); err != nil {
							t.Error(err)
						}
					})
				}
				wg.Wait()
				return nil
			},
		}
		stop := start(t, tr)
		send := func(value string) {
			t.Helper()
			if _, err := in.Publish(t.Context(), broker.Record{Value: []byte(value)}); err != nil {
				t.Fatal(err)
			}
			synctest.Wait()
		}
		send("1")
		send("late")
		close(returned)
		late.Wait()
		if err := <-errs; err == nil {
			t.Error("emit after the handler has returned: no error")
		}
		send("2")
		if s := tr.Stats(); s.Committed != 3 || s.Aborted != 0 {
			t.Errorf("%+v", s)
		}
		n := 0
		for r, err := range out.Read(t.Context(), broker.Range{ReadCommitted: true}) {
			if err != nil || string(r.Value) == "late" {
				t.Fatal(r, err)
			}
			n++
		}
		if n != 16 {
			t.Errorf("%d records came out, want 16", n)
		}
		if err := stop(); err != nil {
			t.Error(err)
		}
	})
}

// A handler that ends its goroutine ends Run, with an error.
func TestTransformerWhoseHandlerEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openMemory(t)
		in := declareStream(t, b, "in", 1)
		if _, err := in.Publish(t.Context(), broker.Record{}); err != nil {
			t.Fatal(err)
		}
		tr := &broker.Transformer{
			Broker: b, Source: in, Group: "g", ID: "x", Logger: quiet,
			Handler: func(context.Context, []*broker.Record, func(broker.Stream, ...broker.Record) error) error {
				runtime.Goexit()
				return nil
			},
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		if err := tr.Run(ctx); err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "goroutine") {
			t.Errorf("Run: %v", errors.Join(err, ctx.Err()))
		}
	})
}

func TestTransformerPauses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openMemory(t)
		in := declareStream(t, b, "in", 1)
		handled := 0
		tr := &broker.Transformer{
			Broker: b, Source: in, Group: "g", ID: "x", Logger: quiet,
			Handler: func(_ context.Context, rs []*broker.Record, _ func(broker.Stream, ...broker.Record) error) error {
				handled += len(rs)
				return nil
			},
		}
		stop := start(t, tr)
		synctest.Wait()
		for _, paused := range []bool{true, false} {
			if paused {
				tr.Pause()
			} else {
				tr.Resume()
			}
			before := handled
			if _, err := in.Publish(t.Context(), broker.Record{}); err != nil {
				t.Fatal(err)
			}
			advance(time.Minute)
			if s := tr.Stats(); s.Paused != paused || paused != (handled == before) || tr.Ready() != nil {
				t.Errorf("paused %t: %+v, handled %d of %d more, %v", paused, s, handled-before, 1, tr.Ready())
			}
		}
		if err := stop(); err != nil || handled != 2 {
			t.Errorf("%d handled, %v", handled, err)
		}
	})
}
