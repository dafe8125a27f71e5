package broker_test

import (
	"context"
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

// A handler that ends its goroutine has failed: what it emitted is rolled back,
// and its records come again.
func TestTransformerWhoseHandlerEndsItsGoroutine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := openMemory(t)
		in, out := declareStream(t, b, "in", 1), declareStream(t, b, "out", 1)
		if _, err := in.Publish(t.Context(), broker.Record{}); err != nil {
			t.Fatal(err)
		}
		tries := 0
		tr := &broker.Transformer{
			Broker: b, Source: in, Group: "g", ID: "x", Logger: quiet,
			Handler: func(_ context.Context, _ []*broker.Record, emit func(broker.Stream, ...broker.Record) error) error {
				tries++
				err := emit(out, broker.Record{Value: fmt.Append(nil, tries)})
				if tries < 3 {
					runtime.Goexit()
				}
				return err
			},
		}
		stop := start(t, tr)
		synctest.Wait()
		if err := tr.Ready(); err == nil || !strings.Contains(err.Error(), "goroutine") {
			t.Errorf("Ready: %v", err)
		}
		advance(time.Minute)
		if s := tr.Stats(); s.Committed != 1 || s.Aborted != 2 || tr.Ready() != nil {
			t.Errorf("%+v, Ready: %v", s, tr.Ready())
		}
		var got []string
		for r, err := range out.Read(t.Context(), broker.Range{ReadCommitted: true}) {
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, string(r.Value))
		}
		if len(got) != 1 || got[0] != "3" {
			t.Errorf("came out: %q", got)
		}
		if err := stop(); err != nil {
			t.Error(err)
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
