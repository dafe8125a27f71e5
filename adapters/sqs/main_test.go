package sqs

import (
	"flag"
	"testing"

	"go.uber.org/goleak"

	"github.com/queuestream/broker/conformance"
)

func TestMain(m *testing.M) {
	conformance.SeedFlag(flag.CommandLine)
	goleak.VerifyTestMain(m)
}
