package broker_test

import (
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// advance lets virtual time pass; it is for synctest bubbles alone.
func advance(d time.Duration) { <-time.After(d) }
