package conformance

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/queuestream/broker"
)

// A failure shows the beginning and the size of large values, wherever in its
// arguments they are, and all of a stack.
func TestFailuresAreBrief(t *testing.T) {
	large := strings.Repeat("d", 1<<20)
	const cut = "dddddddddddddddddddddddddddddddddddddddd… (1048576 bytes)"
	c := &C{}
	c.Errorf("%s %q %q %q", large, []byte(large), []string{"a", large}, "short")
	c.WantErr(nil, broker.ErrTooLarge, "publish %q", large)
	c.Errorf("%s", prose(strings.Repeat("stack\n", 1000)))
	want := []string{
		cut + ` "` + cut + `" ["a" "` + cut + `"] "short"`,
		`publish "` + cut + `": nil, want "` + broker.ErrTooLarge.Error() + `"`,
		strings.Repeat("stack\n", 1000),
	}
	if !slices.Equal(c.result.Failures, want) {
		t.Errorf("failures %q, want %q", c.result.Failures, want)
	}
	if b := bytes.Repeat([]byte("x"), briefly); !bytes.Equal(clip(b), b) {
		t.Errorf("a value of %d bytes was cut", briefly)
	}
}
