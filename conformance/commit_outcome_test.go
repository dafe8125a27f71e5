package conformance

import (
	"errors"
	"fmt"
	"testing"

	"github.com/queuestream/broker"
)

// A fence of one partition leaves open what became of the others in the call:
// a member that continues behind them skips nothing.
func TestCommitOutcome(t *testing.T) {
	zero, one := &broker.Assignment{Partition: 0}, &broker.Assignment{Partition: 1}
	record := func(o int64, a *broker.Assignment) *broker.Record {
		rec := &broker.Record{Partition: a.Partition}
		rec.Bind(broker.NewOffset(o), a)
		return rec
	}
	single := []*broker.Record{record(1, zero), record(2, zero)}
	both := []*broker.Record{record(1, zero), record(7, one)}
	fenced := fmt.Errorf("commit: %w", broker.ErrFenced)
	tests := []struct {
		name   string
		rs     []*broker.Record
		err    error
		faulty bool
		want   Outcome
	}{
		{"stored", both, nil, false, OutcomeOK},
		{"nothing to store", nil, nil, false, OutcomeOK},
		{"one partition fenced", single, fenced, false, OutcomeFail},
		{"one of two partitions fenced", both, fenced, false, OutcomeInfo},
		{"fenced after faults", single, fenced, true, OutcomeInfo},
		{"an answer that was lost", single, errors.New("connection reset"), false, OutcomeInfo},
	}
	for _, tt := range tests {
		if got := commitOutcome(tt.rs, tt.err, tt.faulty); got != tt.want {
			t.Errorf("%s: %v, want %v", tt.name, got, tt.want)
		}
	}
}
