package broker

import (
	"context"
	"slices"
	"sync"
	"testing"
)

func TestBatcherGoAllFillsTheFirstBatch(t *testing.T) {
	var mu sync.Mutex
	var batches [][]int
	b := NewBatcher(BatcherOptions[int, int]{
		MaxItems: 4,
		Send: func(_ context.Context, items []int, results []Result[int]) {
			mu.Lock()
			batches = append(batches, slices.Clone(items))
			mu.Unlock()
			for i := range items {
				results[i].Value = -items[i]
			}
		},
	})
	got := make([]int, 6)
	if err := b.GoAll(t.Context(), []int{1, 2, 3, 4, 5, 6}, func(i, r int, err error) {
		if err != nil {
			t.Error(err)
		}
		got[i] = r
	}); err != nil {
		t.Fatal(err)
	}
	if err := b.Flush(t.Context()); err != nil {
		t.Fatal(err)
	}
	if want := []int{-1, -2, -3, -4, -5, -6}; !slices.Equal(got, want) {
		t.Errorf("results %v, want %v", got, want)
	}
	if len(batches) != 2 || len(batches[0]) != 4 {
		t.Errorf("batches %v", batches)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := b.GoAll(t.Context(), []int{1}, nil); err == nil {
		t.Error("after Close: nil")
	}
}
