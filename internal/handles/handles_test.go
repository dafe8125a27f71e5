package handles_test

import (
	"errors"
	"slices"
	"sync"
	"testing"
	"testing/synctest"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/internal/handles"
)

func TestSet(t *testing.T) {
	var s handles.Set[string]
	if err := errors.Join(s.Add("a"), s.Add("b"), s.Add("b"), s.Add("c"), s.Err()); err != nil {
		t.Fatal(err)
	}
	s.Remove("b")
	s.Remove("b")
	s.Remove("never there")
	if got := slices.Sorted(slices.Values(s.All())); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("open: %v", got)
	}
	if got := slices.Sorted(slices.Values(s.End())); !slices.Equal(got, []string{"a", "c"}) {
		t.Errorf("open at the end: %v", got)
	}
	if !errors.Is(s.Add("d"), broker.ErrClosed) || !errors.Is(s.Err(), broker.ErrClosed) {
		t.Error("open after the end")
	}
	s.Remove("a") // it has closed
	if got := s.End(); !slices.Equal(got, []string{"c"}) {
		t.Errorf("still closing: %v", got)
	}
}

// No handle is missed: each was either refused or is among those that End returns.
func TestSetEndsAmidAdds(t *testing.T) {
	for range 100 {
		var s handles.Set[int]
		var wg sync.WaitGroup
		added := make([]bool, 16)
		for i := range added {
			wg.Go(func() { added[i] = s.Add(i) == nil })
		}
		got := s.End()
		wg.Wait()
		for i, ok := range added {
			if ok != slices.Contains(got, i) {
				t.Fatalf("%d: added %v, among %v", i, ok, got)
			}
		}
	}
}

func TestEachRunsAllAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var meet sync.WaitGroup
		meet.Add(3)
		odd := errors.New("odd")
		err := handles.Each([]int{0, 1, 2}, func(i int) error {
			meet.Done()
			meet.Wait() // for the others
			if i == 1 {
				return odd
			}
			return nil
		})
		if !errors.Is(err, odd) {
			t.Error(err)
		}
		if err := handles.Each(nil, func(int) error { return odd }); err != nil {
			t.Error(err)
		}
	})
}
