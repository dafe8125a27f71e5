package kafka

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// Items of one partition lie side by side, whatever comes between.
func TestSheetsKeepPartitionsTogether(t *testing.T) {
	t.Parallel()
	s := newSheets(3)
	last := map[int]*appending{}
	for i := range 5 * smallSheet {
		for p := -1; p < 3; p++ {
			a := s.item(p)
			at := s[1+p].Load()
			if k := i % smallSheet; i < smallSheet && (a != &at.items[k] || k > 0 && last[p] != &at.items[k-1]) {
				t.Fatalf("item %d of partition %d is not beside the one before", i, p)
			}
			last[p] = a
		}
	}
	many := newSheets(10 * maxSheets)
	if a, b := many.item(5), many.item(5+maxSheets); len(many) != 1+maxSheets || a == b {
		t.Errorf("%d sheets for %d partitions, items %p and %p", len(many), 10*maxSheets, a, b)
	}
}

// Sheets are large only while their items are used up quickly: a stream that is
// idle most of the time holds little memory.
func TestSheetsAreLargeWhereBusy(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := newSheets(1)
		take := func(n int, each time.Duration) int {
			for range n {
				time.Sleep(each)
				s.item(0)
			}
			return len(s[1].Load().items)
		}
		const slow = 3 * time.Millisecond
		for _, step := range []struct {
			n    int
			each time.Duration
			want int
		}{
			{1, 0, smallSheet},                 // the first
			{20, slow, smallSheet},             // at leisure
			{10, 0, largeSheet},                // in a hurry
			{1000, 0, largeSheet},              //
			{2 * largeSheet, slow, smallSheet}, // at leisure again
			{20, slow, smallSheet},
		} {
			if got := take(step.n, step.each); got != step.want {
				t.Fatalf("after %d items, %v each: a sheet of %d, want %d", step.n, step.each, got, step.want)
			}
		}
	})
}

// Many may take items at once; each gets its own.
func TestSheetsAreShared(t *testing.T) {
	t.Parallel()
	s := newSheets(2)
	var (
		mu   sync.Mutex
		seen = map[*appending]bool{}
		wg   sync.WaitGroup
	)
	for range 4 {
		wg.Go(func() {
			var mine []*appending
			for i := range 1000 {
				mine = append(mine, s.item(i%2))
			}
			mu.Lock()
			defer mu.Unlock()
			for _, a := range mine {
				if seen[a] {
					t.Errorf("%p was given twice", a)
				}
				seen[a] = true
			}
		})
	}
	wg.Wait()
}
