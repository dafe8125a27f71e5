package containers_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"
)

// The functions of the package leave no goroutine behind, so that tests which
// use it can look for leaks of their own.
func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// within returns a context that ends after d, or with the test.
func within(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// unique returns a name that no other test or run uses.
func unique(t *testing.T) string {
	t.Helper()
	clean := strings.NewReplacer("/", "-", "_", "-").Replace(t.Name())
	return clean + "-" + time.Now().Format("150405.000000000")[7:]
}

// must fails the test on an error.
func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// eventually calls f until it returns nil, and fails with its last error when
// the time is up.
func eventually(t *testing.T, d time.Duration, f func(context.Context) error) {
	t.Helper()
	ctx := within(t, d)
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := f(ctx)
		if err == nil {
			return
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("not within %v: %v", d, err)
		}
	}
}
