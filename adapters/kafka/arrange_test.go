package kafka

import (
	"testing"

	"pgregory.net/rapid"
)

// partitions is a load of records that are known by where they go.
type partitions []int

func (p partitions) size(int) int                     { return 0 }
func (p partitions) partition(i int) int              { return p[i] }
func (p partitions) encode(int, *item, *copies) error { return nil }
func (p partitions) answer(int, int32, int64, error)  {}

// Each record of a flight has a place of its own; those of a partition lie side
// by side, in their order.
func TestArrange(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		p := partitions(rapid.SliceOfN(rapid.IntRange(-2, 2*maxSheets), arranged-3, 3*arranged).Draw(t, "partitions"))
		from := rapid.IntRange(0, 2).Draw(t, "from")
		f := &flight{from: from, items: make([]sending, len(p)-from)}
		for range 2 { // as new, and used again
			places := f.arrange(p)
			if len(f.items) < arranged {
				if places != nil {
					t.Fatal("a small flight is arranged")
				}
				return
			}
			at := make([]int, len(places)) // the records by their place
			for i := range at {
				at[i] = -1
			}
			for i, place := range places {
				if at[place] >= 0 {
					t.Fatalf("records %d and %d have one place", at[place], i)
				}
				at[place] = i
			}
			side := func(i int) int { return max(p[from+i], -1) % maxSheets }
			done := map[int]bool{}
			for k := 1; k < len(at); k++ {
				a, b := side(at[k-1]), side(at[k])
				switch {
				case a == b && at[k-1] > at[k]:
					t.Fatalf("record %d comes after %d", at[k-1], at[k])
				case a != b && done[b]:
					t.Fatalf("records of partition %d are apart", b)
				case a != b:
					done[a] = true
				}
			}
		}
	})
}
