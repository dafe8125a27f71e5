package conformance

import (
	"fmt"
	"slices"
	"testing"

	"github.com/queuestream/broker"
)

// A streamScript writes histories in a few words.
type streamScript struct{ *StreamHistory }

func at(value string, p int32, o int64) StreamEntry {
	return StreamEntry{Value: value, Partition: p, Offset: broker.NewOffset(o), HasOffset: true}
}

func (s streamScript) do(e StreamEvent, o Outcome) { s.End(s.Begin(e), o, nil) }

func (s streamScript) send(who string, es ...StreamEntry) {
	s.do(StreamEvent{Op: StreamSend, Who: who, Entries: es}, OutcomeOK)
}

func (s streamScript) sendTx(tx string, es ...StreamEntry) {
	s.do(StreamEvent{Op: StreamSend, Who: "producer-" + tx, Tx: tx, Entries: es}, OutcomeOK)
}

func (s streamScript) endTx(tx string, rollback bool, o Outcome) {
	s.do(StreamEvent{Op: StreamTxEnd, Who: "producer-" + tx, Tx: tx, Rollback: rollback}, o)
}

// read is a whole read without a group, of committed records.
func (s streamScript) read(who string, es ...StreamEntry) {
	s.do(StreamEvent{Op: StreamPoll, Who: who, Entries: es, ReadCommitted: true}, OutcomeOK)
}

func (s streamScript) poll(who string, es ...StreamEntry) {
	s.do(StreamEvent{Op: StreamPoll, Who: who, Group: "g", Entries: es}, OutcomeOK)
}

func (s streamScript) group(op StreamOp, who string, ps ...int32) {
	s.do(StreamEvent{Op: op, Who: who, Group: "g", Partitions: ps}, OutcomeOK)
}

func (s streamScript) entries(op StreamOp, who string, es ...StreamEntry) {
	s.do(StreamEvent{Op: op, Who: who, Group: "g", Entries: es}, OutcomeOK)
}

func TestCheckStream(t *testing.T) {
	abc := []StreamEntry{at("a", 0, 0), at("b", 0, 1), at("c", 0, 2)}
	sent := func(s streamScript) { s.send("p", abc[0]); s.send("p", abc[1]); s.send("p", abc[2]) }
	sentAndRead := func(s streamScript) { sent(s); s.read("r", abc...) }
	tests := []struct {
		name string
		do   func(s streamScript)
		want []string
	}{
		{"nothing", func(streamScript) {}, nil},
		{"sent and read", sentAndRead, nil},
		{"gaps between offsets are legal", func(s streamScript) {
			s.send("p", at("a", 0, 3))
			s.send("p", at("b", 0, 9))
			s.read("r", at("a", 0, 3), at("b", 0, 9))
		}, nil},
		{"an unknown outcome may be stored", func(s streamScript) {
			s.do(StreamEvent{Op: StreamSend, Who: "p", Entries: []StreamEntry{{Value: "a"}}}, OutcomeInfo)
			s.read("r", at("a", 0, 0))
		}, nil},
		{"or not", func(s streamScript) {
			s.Begin(StreamEvent{Op: StreamSend, Who: "p", Entries: []StreamEntry{{Value: "a"}}})
			s.read("r")
		}, nil},
		{"a failed send that is not stored", func(s streamScript) {
			s.do(StreamEvent{Op: StreamSend, Who: "p", Entries: []StreamEntry{{Value: "a"}}}, OutcomeFail)
			s.read("r")
		}, nil},
		{"a failed send that a retry made good", func(s streamScript) {
			s.do(StreamEvent{Op: StreamSend, Who: "p", Entries: []StreamEntry{{Value: "a"}}}, OutcomeFail)
			s.send("p", abc[0])
			s.read("r", abc[0])
		}, nil},

		{"one offset, two values, both acknowledged", func(s streamScript) {
			s.send("p", abc[0])
			s.send("q", at("x", 0, 0))
			s.read("r", abc[0], at("x", 0, 1))
		}, []string{InconsistentOffset}},
		{"one offset, two values, read", func(s streamScript) {
			s.send("p", abc[0])
			s.send("p", at("x", 0, 1))
			s.read("r", abc[0], at("x", 0, 1))
			s.read("r2", at("x", 0, 0), at("x", 0, 1))
		}, []string{InconsistentOffset}},

		{"a refused value is read", func(s streamScript) {
			s.do(StreamEvent{Op: StreamSend, Who: "p", Entries: []StreamEntry{{Value: "a"}}}, OutcomeFail)
			s.read("r", abc[0])
		}, []string{AbortedRead}},
		{"a rolled back value is read", func(s streamScript) {
			s.sendTx("t", abc[0])
			s.endTx("t", true, OutcomeOK)
			s.read("r", abc[0])
		}, []string{AbortedRead}},
		{"a value of a commit that failed is read", func(s streamScript) {
			s.sendTx("t", abc[0])
			s.endTx("t", false, OutcomeFail)
			s.read("r", abc[0])
		}, []string{AbortedRead}},
		{"readers of all see rolled back values", func(s streamScript) {
			s.sendTx("t", abc[0])
			s.endTx("t", true, OutcomeOK)
			s.poll("m", abc[0])
		}, nil},

		{"a value nobody sent", func(s streamScript) { s.read("r", abc[0]) }, []string{UnknownValue}},

		{"lost in the middle", func(s streamScript) { sent(s); s.read("r", abc[0], abc[2]) }, []string{LostWrite, SkippingPoll}},
		{"lost at the front", func(s streamScript) { sent(s); s.read("r", abc[1], abc[2]) }, []string{LostWrite}},
		{"lost at the end", func(s streamScript) { sent(s); s.read("r", abc[0], abc[1]) }, []string{Unseen}},
		{"lost without an offset", func(s streamScript) {
			s.send("p", StreamEntry{Value: "x"})
			s.send("p", abc[0])
			s.read("r", abc[0])
		}, []string{Unseen}},
		{"lost in another partition", func(s streamScript) {
			sent(s)
			s.send("p", at("x", 1, 0))
			s.read("r", abc...)
		}, []string{Unseen}},
		{"retention is no loss", func(s streamScript) { s.Sparse = true; sent(s); s.read("r", abc[2]) }, nil},

		{"stored twice where the producer is idempotent", func(s streamScript) {
			s.Idempotent = true
			s.send("p", abc[0])
			s.read("r", abc[0], at("a", 0, 1))
		}, []string{DuplicateWrite}},
		{"stored twice in two partitions", func(s streamScript) {
			s.Idempotent = true
			s.send("p", abc[0])
			s.read("r", abc[0], at("a", 1, 0))
		}, []string{DuplicateWrite}},
		{"sent twice by the program and stored twice", func(s streamScript) {
			s.Idempotent = true
			s.do(StreamEvent{Op: StreamSend, Who: "p", Entries: []StreamEntry{{Value: "a"}}}, OutcomeInfo)
			s.send("p", at("a", 0, 1))
			s.read("r", abc[0], at("a", 0, 1))
		}, nil},
		{"stored twice where it may be", func(s streamScript) {
			s.send("p", abc[0])
			s.read("r", abc[0], at("a", 0, 1))
		}, nil},

		{"a call goes back", func(s streamScript) { sent(s); s.read("r", abc[0], abc[2], abc[1]) }, []string{NonMonotonicPoll, SkippingPoll}},
		{"a call repeats", func(s streamScript) { sent(s); s.read("r", abc[0], abc[0], abc[1], abc[2]) }, []string{NonMonotonicPoll}},
		{"a member goes back between calls", func(s streamScript) {
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			s.poll("m", abc[0], abc[1])
			s.poll("m", abc[1])
		}, []string{NonMonotonicPoll}},
		{"a member goes back after an assignment", func(s streamScript) {
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			s.poll("m", abc[0], abc[1])
			s.group(StreamRevoke, "m", 0)
			s.group(StreamAssign, "m", 0)
			s.poll("m", abc...)
		}, nil},
		{"a member goes back under a new hold", func(s streamScript) {
			sentAndRead(s)
			one, two := abc[0], abc[0]
			one.Hold, two.Hold = &broker.Assignment{}, &broker.Assignment{}
			s.poll("m", one)
			s.poll("m", two)
		}, nil},
		{"a member goes back after a seek", func(s streamScript) {
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			s.poll("m", abc[0], abc[1])
			s.group(StreamSeek, "m", 0)
			s.poll("m", abc...)
		}, nil},
		{"two members at their own pace", func(s streamScript) {
			sentAndRead(s)
			s.poll("m", abc[0])
			s.do(StreamEvent{Op: StreamPoll, Who: "n", Group: "h", Entries: abc}, OutcomeOK)
			s.poll("m", abc[1:]...)
		}, nil},

		{"a member skips within a call", func(s streamScript) { sentAndRead(s); s.poll("m", abc[0], abc[2]) }, []string{SkippingPoll}},
		{"a member skips between calls", func(s streamScript) { sentAndRead(s); s.poll("m", abc[0]); s.poll("m", abc[2]) }, []string{SkippingPoll}},
		{"a member skips by a seek", func(s streamScript) {
			sentAndRead(s)
			s.poll("m", abc[0])
			s.group(StreamSeek, "m", 0)
			s.poll("m", abc[2])
		}, nil},
		{"a member begins beyond the commit", func(s streamScript) {
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			s.poll("m", abc[0], abc[1])
			s.entries(StreamCommit, "m", abc[0])
			s.group(StreamRevoke, "m", 0)
			s.group(StreamAssign, "n", 0)
			s.poll("n", abc[2])
		}, []string{SkippingPoll}},
		{"a member begins behind the commit", func(s streamScript) {
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			s.poll("m", abc[0], abc[1])
			s.entries(StreamCommit, "m", abc[0])
			s.group(StreamRevoke, "m", 0)
			s.group(StreamAssign, "n", 0)
			s.poll("n", abc[1], abc[2])
		}, nil},
		{"a commit without an answer may count", func(s streamScript) {
			sentAndRead(s)
			s.poll("m", abc[0], abc[1])
			s.Begin(StreamEvent{Op: StreamCommit, Who: "m", Group: "g", Entries: abc[1:2]})
			s.group(StreamLost, "m", 0)
			s.group(StreamAssign, "n", 0)
			s.poll("n", abc[2])
		}, nil},
		{"readers of committed records skip what is rolled back", func(s streamScript) {
			s.send("p", abc[0])
			s.sendTx("t", abc[1])
			s.endTx("t", true, OutcomeOK)
			s.send("p", abc[2])
			s.poll("m", abc...)
			s.read("r", abc[0], abc[2])
		}, nil},

		{"a later send lands earlier", func(s streamScript) {
			s.send("p", at("a", 0, 5))
			s.send("p", at("b", 0, 4))
			s.read("r", at("b", 0, 4), at("a", 0, 5))
		}, []string{NonMonotonicSend}},
		{"a batch lands in another order", func(s streamScript) {
			s.send("p", at("a", 0, 5), at("b", 0, 4))
			s.read("r", at("b", 0, 4), at("a", 0, 5))
		}, []string{NonMonotonicSend}},
		{"sends at the same time land in any order", func(s streamScript) {
			i := s.Begin(StreamEvent{Op: StreamSend, Who: "p", Entries: []StreamEntry{{Value: "a"}}})
			s.send("p", at("b", 0, 4))
			s.End(i, OutcomeOK, []StreamEntry{at("a", 0, 3)})
			s.read("r", at("a", 0, 3), at("b", 0, 4))
		}, nil},
		{"other producers and partitions are not ordered", func(s streamScript) {
			s.send("p", at("a", 0, 5))
			s.send("q", at("b", 0, 4))
			s.send("p", at("c", 1, 1))
			s.read("r", at("b", 0, 4), at("a", 0, 5), at("c", 1, 1))
		}, nil},

		{"two owners", func(s streamScript) { s.group(StreamAssign, "m", 0, 1); s.group(StreamAssign, "n", 1) }, []string{NotOwned}},
		{"one owner after the other", func(s streamScript) {
			s.group(StreamAssign, "m", 0, 1)
			s.group(StreamRevoke, "m", 1)
			s.group(StreamAssign, "n", 1)
		}, nil},
		{"assigned while the other still hands over", func(s streamScript) {
			s.group(StreamAssign, "m", 1)
			i := s.Begin(StreamEvent{Op: StreamRevoke, Who: "m", Group: "g", Partitions: []int32{1}})
			s.group(StreamAssign, "n", 1)
			s.End(i, OutcomeOK, nil)
		}, []string{NotOwned}},
		{"assigned before the other hears that it is lost, without a fault", func(s streamScript) {
			s.group(StreamAssign, "m", 1)
			s.group(StreamAssign, "n", 1)
			s.group(StreamLost, "m", 1)
		}, []string{NotOwned}},
		{"assigned before the other hears that it is lost, and again while it is not", func(s streamScript) {
			s.Faulty = true
			s.group(StreamAssign, "m", 0, 1)
			s.group(StreamAssign, "n", 1)
			s.group(StreamRevoke, "m", 0)
			s.group(StreamLost, "m", 1)
			s.group(StreamAssign, "m", 1)
		}, []string{NotOwned}},
		{"assigned before the other hears that it is lost, and lost in turn", func(s streamScript) {
			s.Faulty = true
			s.group(StreamAssign, "m", 1)
			s.group(StreamAssign, "n", 1)
			s.group(StreamLost, "m", 1)
			s.group(StreamRevoke, "n", 1)
			s.group(StreamAssign, "m", 1)
		}, nil},
		{"a commit of what another has, before it is known to be lost", func(s streamScript) {
			s.Faulty = true
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			s.poll("m", abc[0])
			s.group(StreamAssign, "n", 0)
			s.poll("m", abc[1]) // it was fetched before
			s.entries(StreamCommit, "m", abc[0])
			s.group(StreamLost, "m", 0)
		}, []string{NotOwned}},
		{"assigned before the other hears that it is to let it go", func(s streamScript) {
			s.Faulty = true
			s.group(StreamAssign, "m", 1)
			s.group(StreamAssign, "n", 1)
			s.group(StreamRevoke, "m", 1)
		}, []string{NotOwned}},
		{"assigned before the other leaves and so loses it", func(s streamScript) {
			s.Faulty = true
			s.group(StreamAssign, "m", 1)
			s.group(StreamAssign, "n", 1)
			i := s.Begin(StreamEvent{Op: StreamLeave, Who: "m", Group: "g"})
			s.group(StreamLost, "m", 1)
			s.End(i, OutcomeOK, nil)
		}, []string{NotOwned}},
		{"others take over from one that leaves", func(s streamScript) {
			s.group(StreamAssign, "m", 1)
			i := s.Begin(StreamEvent{Op: StreamLeave, Who: "m", Group: "g"})
			s.group(StreamAssign, "n", 1)
			s.End(i, OutcomeOK, nil)
			s.group(StreamAssign, "o", 1)
		}, []string{NotOwned}},
		{"one that leaves is told late what it got", func(s streamScript) {
			i := s.Begin(StreamEvent{Op: StreamLeave, Who: "m", Group: "g"})
			s.group(StreamAssign, "m", 1)
			s.group(StreamAssign, "n", 1)
			s.End(i, OutcomeOK, nil)
			s.poll("n")
		}, nil},
		{"read and commit after it left", func(s streamScript) {
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			s.group(StreamLeave, "m")
			s.poll("m", abc[0])
		}, []string{NotOwned}},
		{"read after it was taken away", func(s streamScript) {
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			s.poll("m", abc[0])
			s.group(StreamRevoke, "m", 0)
			s.poll("m", abc[1])
		}, []string{NotOwned}},
		{"read while it is taken away", func(s streamScript) {
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			i := s.Begin(StreamEvent{Op: StreamPoll, Who: "m", Group: "g"})
			s.group(StreamRevoke, "m", 0)
			s.End(i, OutcomeOK, abc[:1])
		}, nil},
		{"a zombie commits", func(s streamScript) {
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			s.poll("m", abc[0])
			s.group(StreamLost, "m", 0)
			s.group(StreamAssign, "n", 0)
			s.entries(StreamCommit, "m", abc[0])
		}, []string{NotOwned}},
		{"a commit between the return of OnRevoked and the hand-over", func(s streamScript) {
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			s.poll("m", abc[0])
			s.group(StreamRevoke, "m", 0)
			i := s.Begin(StreamEvent{Op: StreamCommit, Who: "m", Group: "g", Entries: abc[:1]})
			s.group(StreamAssign, "n", 0)
			s.End(i, OutcomeOK, nil)
		}, nil},
		{"a commit after the hand-over", func(s streamScript) {
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			s.poll("m", abc[0])
			s.group(StreamRevoke, "m", 0)
			s.group(StreamAssign, "n", 0)
			s.group(StreamRevoke, "n", 0)
			s.entries(StreamCommit, "m", abc[0])
		}, []string{NotOwned}},
		{"a zombie's commit is fenced", func(s streamScript) {
			sentAndRead(s)
			s.group(StreamAssign, "m", 0)
			s.poll("m", abc[0])
			s.group(StreamLost, "m", 0)
			s.group(StreamAssign, "n", 0)
			s.do(StreamEvent{Op: StreamCommit, Who: "m", Group: "g", Entries: abc[:1]}, OutcomeFail)
		}, nil},

		{"stored what is processed", func(s streamScript) {
			sentAndRead(s)
			s.poll("m", abc...)
			s.entries(StreamProcess, "m", abc[1])
			s.entries(StreamProcess, "m", abc[0])
			s.entries(StreamCommitted, "", at("", 0, 2))
		}, nil},
		{"stored over a gap", func(s streamScript) {
			sentAndRead(s)
			s.poll("m", abc...)
			s.entries(StreamProcess, "m", abc[0])
			s.entries(StreamProcess, "m", abc[2])
			s.entries(StreamCommitted, "", at("", 0, 3))
		}, []string{CommittedTooFar}},
		{"stored before it was processed", func(s streamScript) {
			sentAndRead(s)
			s.poll("m", abc...)
			s.entries(StreamCommitted, "", at("", 0, 1))
			s.entries(StreamProcess, "m", abc[0])
		}, []string{CommittedTooFar}},
		{"stored what was never handed out", func(s streamScript) {
			sentAndRead(s)
			s.poll("m", abc[0])
			s.entries(StreamCommitted, "", at("", 0, 2))
		}, []string{CommittedTooFar}},
		{"stored what was handed out", func(s streamScript) {
			sentAndRead(s)
			s.poll("m", abc[0])
			s.entries(StreamCommitted, "", at("", 0, 1))
		}, nil},

		{"a whole transaction", func(s streamScript) {
			s.sendTx("t", abc[0], at("x", 1, 0))
			s.endTx("t", false, OutcomeOK)
			s.read("r", abc[0], at("x", 1, 0))
		}, nil},
		{"a torn transaction", func(s streamScript) {
			s.sendTx("t", abc[0], at("x", 1, 0))
			s.endTx("t", false, OutcomeOK)
			s.read("r", abc[0])
		}, []string{TornTransaction, Unseen}},
		{"a torn transaction of unknown end", func(s streamScript) {
			s.sendTx("t", abc[0], at("x", 1, 0))
			s.endTx("t", false, OutcomeInfo)
			s.read("r", abc[0])
		}, []string{TornTransaction}},
		{"a transaction of unknown end, whole or not at all", func(s streamScript) {
			s.sendTx("t", abc[0], at("x", 1, 0))
			s.endTx("t", false, OutcomeInfo)
			s.sendTx("u", abc[1], at("y", 1, 1))
			s.endTx("u", false, OutcomeInfo)
			s.read("r", abc[1], at("y", 1, 1))
		}, nil},
		{"its own uncommitted write", func(s streamScript) {
			s.sendTx("t", abc[0])
			s.read("producer-t", abc[0])
			s.endTx("t", false, OutcomeOK)
		}, []string{UncommittedRead}},
		{"another's uncommitted write", func(s streamScript) {
			s.sendTx("t", abc[0])
			s.read("r", abc[0])
			s.endTx("t", false, OutcomeOK)
		}, []string{UncommittedRead}},
		{"a transaction that never ends is read", func(s streamScript) {
			s.sendTx("t", abc[0])
			s.read("r", abc[0])
		}, []string{UncommittedRead}},
		{"read while the transaction ends", func(s streamScript) {
			s.sendTx("t", abc[0])
			i := s.Begin(StreamEvent{Op: StreamPoll, Who: "r", ReadCommitted: true})
			j := s.Begin(StreamEvent{Op: StreamTxEnd, Who: "producer-t", Tx: "t"})
			s.End(i, OutcomeOK, abc[:1])
			s.End(j, OutcomeOK, nil)
		}, nil},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s := streamScript{&StreamHistory{}}
			tt.do(s)
			var got []string
			for _, v := range CheckStream(s.StreamHistory) {
				if !slices.Contains(got, v.Verdict) {
					got = append(got, v.Verdict)
				}
			}
			slices.Sort(got)
			slices.Sort(tt.want)
			if !slices.Equal(got, tt.want) {
				t.Errorf("verdicts %q, want %q: %v", got, tt.want, CheckStream(s.StreamHistory))
			}
		})
	}
}

// Histories of the scale case must be judged in seconds: the checks are linear.
func TestCheckStreamScales(t *testing.T) {
	s := streamScript{&StreamHistory{Idempotent: true}}
	const n, partitions = 60_000, 12
	next := [partitions]int64{}
	var batch []StreamEntry
	s.group(StreamAssign, "m", 0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11)
	for i := range n {
		p := int32(i % partitions)
		batch = append(batch, at(fmt.Sprint("v", i), p, next[p]))
		next[p]++
		if len(batch) == 100 {
			s.send("p", batch...)
			s.poll("m", batch...)
			s.entries(StreamProcess, "m", batch...)
			batch = nil
		}
	}
	if out := CheckStream(s.StreamHistory); len(out) > 0 {
		t.Fatalf("%d violations of a good history, the first: %v", len(out), out[0])
	}
}
