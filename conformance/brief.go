package conformance

import (
	"fmt"
	"slices"
)

// A value longer than briefly bytes shows its first beginning bytes alone.
const briefly, beginning = 300, 40

// prose is text that brief leaves as it is: stacks, and what is brief already.
type prose string

// brief returns a message's arguments with the long values among them cut: of
// a body of a MiB the beginning and the size say enough.
func brief(args []any) []any {
	out := slices.Clone(args)
	for i, a := range out {
		switch a := a.(type) {
		case string:
			out[i] = clip(a)
		case []byte:
			out[i] = clip(a)
		case []string:
			short := make([]string, len(a))
			for j := range a {
				short[j] = clip(a[j])
			}
			out[i] = short
		}
	}
	return out
}

// clip shortens a value for a message to a person.
func clip[T string | []byte](v T) T {
	if len(v) <= briefly {
		return v
	}
	return T(fmt.Sprintf("%s… (%d bytes)", v[:beginning], len(v)))
}
