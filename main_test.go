package broker_test

import (
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// advance lets virtual time pass until every goroutine of the bubble waits
// again; for the test's own goroutine.
func advance(d time.Duration) {
	<-time.After(d)
	synctest.Wait()
}

// spend lets virtual time pass inside a handler.
func spend(d time.Duration) { <-time.After(d) }
