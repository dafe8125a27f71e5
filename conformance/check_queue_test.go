package conformance

import (
	"context"
	"errors"
	"slices"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

// step is one line of a small history: what happened, in order.
type step struct {
	op      QueueOp
	who     string
	value   string
	group   string
	n       int // delivery
	attempt int
	err     error
	at      int // seconds since the start
	until   int // deadline in seconds; 0: none
	batch   int
	dup     bool
}

func build(h *QueueHistory, steps []step) *QueueHistory {
	start := time.Unix(1000, 0)
	var sent []int // of the batch that is being sent
	for j, s := range steps {
		e := QueueEvent{Op: s.op, Who: s.who, Value: s.value, Group: s.group, Delivery: s.n, Attempt: s.attempt,
			Batch: s.batch, Duplicate: s.dup, At: start.Add(time.Duration(s.at) * time.Second)}
		if e.Batch != 0 {
			for i := range h.Events {
				if h.Events[i].Batch == e.Batch {
					e.Position++
				}
			}
		}
		if s.until > 0 {
			e.Deadline = start.Add(time.Duration(s.until) * time.Second)
		}
		if s.op == QueueReceive || s.op == QueueClose || s.op == QueueDead {
			h.Add(e)
			continue
		}
		i := h.Begin(e)
		if s.batch != 0 && j+1 < len(steps) && steps[j+1].batch == s.batch {
			sent = append(sent, i)
			continue
		}
		for _, i := range append(sent, i) {
			h.End(i, s.err)
		}
		sent = nil
	}
	return h
}

var errRefused = errors.New("refused")

func send(v, group string) step { return step{op: QueueSend, who: "p", value: v, group: group} }
func recv(n int, who, v, g string) step {
	return step{op: QueueReceive, who: who, value: v, group: g, n: n, attempt: 1}
}
func ack(n int, who, v string) step  { return step{op: QueueAck, who: who, value: v, n: n} }
func nack(n int, who, v string) step { return step{op: QueueNack, who: who, value: v, n: n} }

func TestCheckQueue(t *testing.T) {
	ordered := QueueRules{Ordered: true, Drained: true, ExactlyOnce: true, Attempts: true}
	unknown := step{op: QueueSend, who: "p", value: "a", err: broker.ErrUnknownOutcome}
	refused := step{op: QueueSend, who: "p", value: "a", err: errRefused}
	second := recv(2, "k", "a", "")
	second.attempt = 2
	lapsed := recv(1, "k", "a", "g")
	lapsed.until = 10
	later := func(s step, at int) step { s.at = at; return s }
	numbered := func(s step, attempt int) step { s.attempt = attempt; return s }
	many := func(missing ...int) []step {
		var steps []step
		for i := range 30 {
			steps = append(steps, send(itoa(i), ""))
		}
		for i := range 30 {
			if !slices.Contains(missing, i) {
				steps = append(steps, recv(i+1, "k", itoa(i), ""), ack(i+1, "k", itoa(i)))
			}
		}
		return steps
	}
	tests := []struct {
		name  string
		h     QueueRules
		steps []step
		want  []string
	}{
		{"good", ordered, []step{send("a", "g"), send("b", "g"), recv(1, "k", "a", "g"), ack(1, "k", "a"), recv(2, "k", "b", "g"), ack(2, "k", "b")}, nil},
		{"nothing happened", ordered, nil, nil},
		{"lost first", ordered, many(0), []string{VerdictLost}},
		{"lost middle", ordered, many(15), []string{VerdictLost}},
		{"lost tail", ordered, many(29), []string{VerdictLost}},
		{"lost in two places", ordered, many(0, 29), []string{VerdictLost, VerdictLost}},
		{"not drained is not lost", QueueRules{}, many(0, 29), nil},
		{"unknown outcome is not lost", ordered, []step{unknown}, nil},
		{"unknown outcome may be delivered", ordered, []step{unknown, recv(1, "k", "a", ""), ack(1, "k", "a")}, nil},
		{"nacked and gone", ordered, []step{send("a", ""), recv(1, "k", "a", ""), nack(1, "k", "a")}, []string{VerdictLost}},
		{"held by a closed one and gone", ordered, []step{send("a", ""), recv(1, "k", "a", ""), {op: QueueClose, who: "k"}}, []string{VerdictLost}},
		{"a failed acknowledgement settles nothing", ordered, []step{send("a", ""), recv(1, "k", "a", ""), {op: QueueAck, who: "k", value: "a", n: 1, err: errRefused}}, []string{VerdictLost}},
		{"a duplicate by its receipt is not lost", ordered, []step{{op: QueueSend, value: "a", dup: true}}, nil},

		{"phantom", ordered, []step{recv(1, "k", "x", ""), ack(1, "k", "x")}, []string{VerdictPhantom}},
		{"phantom dead letter", ordered, []step{{op: QueueDead, value: "x"}}, []string{VerdictPhantom, VerdictDeadLetter}},
		{"refused and delivered", ordered, []step{refused, recv(1, "k", "a", ""), ack(1, "k", "a")}, []string{VerdictPhantom}},
		{"refused, then retried with success", ordered, []step{refused, send("a", ""), recv(1, "k", "a", ""), ack(1, "k", "a")}, nil},

		{"duplicated", ordered, []step{send("a", ""), recv(1, "k", "a", ""), ack(1, "k", "a"), second, ack(2, "k", "a")}, []string{VerdictDuplicated}},
		{"duplicates are legal", QueueRules{Drained: true}, []step{send("a", ""), recv(1, "k", "a", ""), ack(1, "k", "a"), second, ack(2, "k", "a")}, nil},
		{"redelivered after nack", ordered, []step{send("a", ""), recv(1, "k", "a", ""), nack(1, "k", "a"), second, ack(2, "k", "a")}, nil},
		{"redelivered after an unknown acknowledgement", ordered, []step{send("a", ""), recv(1, "k", "a", ""), {op: QueueAck, who: "k", value: "a", n: 1, err: context.DeadlineExceeded}, second, ack(2, "k", "a")}, nil},

		{"gone after an unknown acknowledgement, under faults", QueueRules{Drained: true, Faulty: true}, []step{send("a", ""), recv(1, "k", "a", ""), {op: QueueAck, who: "k", value: "a", n: 1, err: broker.ErrUnknownOutcome}}, nil},
		{"gone after an unknown acknowledgement, without", ordered, []step{send("a", ""), recv(1, "k", "a", ""), {op: QueueAck, who: "k", value: "a", n: 1, err: broker.ErrUnknownOutcome}}, []string{VerdictLost}},
		{"gone after a refused acknowledgement, under faults", QueueRules{Drained: true, Faulty: true}, []step{send("a", ""), recv(1, "k", "a", ""), {op: QueueAck, who: "k", value: "a", n: 1, err: broker.ErrLeaseLost}}, []string{VerdictLost}},
		{"gone after an unknown rejection, under faults", QueueRules{Drained: true, Faulty: true}, []step{send("a", ""), recv(1, "k", "a", ""), {op: QueueReject, who: "k", value: "a", n: 1, err: broker.ErrUnknownOutcome}}, []string{VerdictLost}},

		{"reordered", ordered, []step{send("a", "g"), send("b", "g"), recv(1, "k", "b", "g"), ack(1, "k", "b"), recv(2, "k", "a", "g"), ack(2, "k", "a")}, []string{VerdictReordered}},
		{"other groups may overtake", ordered, []step{send("a", "g"), send("b", "h"), recv(1, "k", "b", "h"), ack(1, "k", "b"), recv(2, "k", "a", "g"), ack(2, "k", "a")}, nil},
		{"no group may overtake", ordered, []step{send("a", ""), send("b", ""), recv(1, "k", "b", ""), ack(1, "k", "b"), recv(2, "k", "a", ""), ack(2, "k", "a")}, nil},
		{"no group may not where it is FIFO", QueueRules{FIFO: true}, []step{send("a", ""), send("b", ""), recv(1, "k", "b", ""), recv(2, "k", "a", "")}, []string{VerdictReordered}},
		{"reordered in a batch", ordered, []step{{op: QueueSend, value: "a", group: "g", batch: 1}, {op: QueueSend, value: "b", group: "g", batch: 1}, recv(1, "k", "b", "g"), ack(1, "k", "b"), recv(2, "k", "a", "g"), ack(2, "k", "a")}, []string{VerdictReordered}},

		{"parallel", ordered, []step{send("a", "g"), send("b", "g"), recv(1, "k", "a", "g"), recv(2, "l", "b", "g"), ack(1, "k", "a"), ack(2, "l", "b")}, []string{VerdictParallel}},
		{"parallel in one consumer", ordered, []step{send("a", "g"), send("b", "g"), recv(1, "k", "a", "g"), recv(2, "k", "b", "g"), ack(1, "k", "a"), ack(2, "k", "b")}, []string{VerdictParallel}},
		{"parallel without order", QueueRules{}, []step{send("a", "g"), send("b", "g"), recv(1, "k", "a", "g"), recv(2, "l", "b", "g")}, nil},
		{"after the lease it is free", ordered, []step{send("a", "g"), lapsed, later(numbered(recv(2, "l", "a", "g"), 2), 10), ack(2, "l", "a")}, nil},
		{"parallel after a lapsed one", ordered, []step{send("a", "g"), send("b", "g"), lapsed, later(numbered(recv(2, "l", "a", "g"), 2), 10), later(recv(3, "m", "b", "g"), 11), ack(2, "l", "a"), ack(3, "m", "b")}, []string{VerdictParallel}},
		{"extended, so it is held", ordered, []step{send("a", "g"), lapsed, {op: QueueExtend, who: "k", value: "a", n: 1, until: 20}, later(numbered(recv(2, "l", "a", "g"), 2), 12), ack(2, "l", "a")}, []string{VerdictTwoHolders}},

		{"two holders", ordered, []step{send("a", ""), recv(1, "k", "a", ""), numbered(recv(2, "l", "a", ""), 2), ack(1, "k", "a"), ack(2, "l", "a")}, []string{VerdictTwoHolders}},
		{"two holders before the lease has passed", ordered, []step{send("a", "g"), lapsed, later(numbered(recv(2, "l", "a", "g"), 2), 9), ack(2, "l", "a")}, []string{VerdictTwoHolders}},
		{"closed ones hold nothing", ordered, []step{send("a", ""), recv(1, "k", "a", ""), {op: QueueClose, who: "k"}, numbered(recv(2, "l", "a", ""), 2), ack(2, "l", "a")}, nil},
		{"faults excuse two holders", QueueRules{Faulty: true}, []step{send("a", ""), recv(1, "k", "a", ""), recv(2, "l", "a", ""), ack(2, "l", "a")}, nil},

		{"attempt starts at 0", ordered, []step{send("a", ""), numbered(recv(1, "k", "a", ""), 0), ack(1, "k", "a")}, []string{VerdictAttempts}},
		{"attempt does not rise", ordered, []step{send("a", ""), recv(1, "k", "a", ""), nack(1, "k", "a"), recv(2, "k", "a", ""), ack(2, "k", "a")}, []string{VerdictAttempts}},
		{"attempts may skip", ordered, []step{send("a", ""), recv(1, "k", "a", ""), nack(1, "k", "a"), numbered(second, 5), ack(2, "k", "a")}, nil},

		{"dead after two", QueueRules{MaxAttempts: 2, Drained: true}, []step{send("a", ""), recv(1, "k", "a", ""), nack(1, "k", "a"), second, nack(2, "k", "a"), {op: QueueDead, value: "a"}}, nil},
		{"dead too early", QueueRules{MaxAttempts: 2}, []step{send("a", ""), recv(1, "k", "a", ""), nack(1, "k", "a"), {op: QueueDead, value: "a"}}, []string{VerdictDeadLetter}},
		{"early is legal under faults", QueueRules{MaxAttempts: 2, Faulty: true}, []step{send("a", ""), recv(1, "k", "a", ""), nack(1, "k", "a"), {op: QueueDead, value: "a"}}, nil},
		{"one delivery too many", QueueRules{MaxAttempts: 1, Faulty: true}, []step{send("a", ""), recv(1, "k", "a", ""), nack(1, "k", "a"), second, nack(2, "k", "a"), {op: QueueDead, value: "a"}}, []string{VerdictDeadLetter}},
		{"never dead", QueueRules{MaxAttempts: 1, Drained: true}, []step{send("a", ""), recv(1, "k", "a", ""), nack(1, "k", "a")}, []string{VerdictLost}},
		{"two copies", QueueRules{MaxAttempts: 1}, []step{send("a", ""), recv(1, "k", "a", ""), nack(1, "k", "a"), {op: QueueDead, value: "a"}, {op: QueueDead, value: "a"}}, []string{VerdictDeadLetter}},
		{"rejected", QueueRules{Drained: true}, []step{send("a", ""), recv(1, "k", "a", ""), {op: QueueReject, who: "k", value: "a", n: 1}, {op: QueueDead, value: "a"}}, nil},
		{"rejected and gone", QueueRules{Drained: true}, []step{send("a", ""), recv(1, "k", "a", ""), {op: QueueReject, who: "k", value: "a", n: 1}}, []string{VerdictDeadLetter}},
		{"acknowledged and dead", QueueRules{MaxAttempts: 1}, []step{send("a", ""), recv(1, "k", "a", ""), ack(1, "k", "a"), {op: QueueDead, value: "a"}}, []string{VerdictDeadLetter}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			h := &QueueHistory{QueueRules: tt.h}
			var got []string
			vs := CheckQueue(build(h, tt.steps))
			for _, v := range vs {
				got = append(got, v.Verdict)
			}
			if !slices.Equal(got, tt.want) {
				t.Errorf("got %q, want %q: %v", got, tt.want, vs)
			}
		})
	}
}

func TestDuplicates(t *testing.T) {
	h := build(&QueueHistory{}, []step{send("a", ""), recv(1, "k", "a", ""), ack(1, "k", "a"), recv(2, "k", "a", ""), ack(2, "k", "a")})
	if n := h.Duplicates(); n != 1 {
		t.Errorf("%d duplicates, want 1", n)
	}
}
