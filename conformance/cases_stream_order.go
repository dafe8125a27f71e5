package conformance

import (
	"errors"
	"slices"

	"github.com/queuestream/broker"
)

var streamOrder = map[int]StreamCase{
	19: {Config: partitions(3), Run: streamPartitionOrder},
	20: {Config: partitions(4), Run: streamKeyAffinity},
	21: {Config: partitions(2), Run: streamSendOrder},

	37: {Needs: broker.StreamCapabilities{Idempotent: true}, Config: partitions(2), Run: streamRetryDedup},
	38: {Config: partitions(3), Run: streamReceipts},
}

func streamPartitionOrder(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	n := c.Harness().Messages / c.Harness().Workers
	sent := make([][]string, c.Harness().Workers)
	r.parallel(c.Harness().Workers, func(w int) {
		who := "producer-" + itoa(w)
		rs := r.make(who, n, 1) // one key: one partition
		sent[w] = sentValues(rs)
		for i, chunk := range slices.Collect(slices.Chunk(rs, 7)) {
			if i%2 == 0 {
				r.send(who, chunk...)
			} else {
				r.sendBatch(who, chunk)
			}
		}
	})
	check := func(how string, all []*broker.Record) {
		byKey := map[string][]string{}
		for _, rec := range all {
			byKey[string(rec.Key)] = append(byKey[string(rec.Key)], string(rec.Value))
		}
		for w := range sent {
			key := "producer-" + itoa(w) + "-key-0"
			r.sameValues(byKey[key], sent[w], "%s: what %s sent, in order", how, key)
		}
	}
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	check("receive", m.collect(n*len(sent)))
	check("read", r.judge())
}

func streamKeyAffinity(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	again, err := c.Fresh().Stream(c.Context(), s.Name(), nil)
	c.Must(err, "open the stream again")
	c.track("stream", again.Close)
	where, used := map[string]int32{}, map[int32]bool{}
	note := func(how string, rec *broker.Record, got broker.Receipt) {
		p, ok := where[string(rec.Key)]
		if ok && p != got.Partition {
			c.Errorf("%s: key %q went to partition %d, before to %d", how, rec.Key, got.Partition, p)
		}
		where[string(rec.Key)], used[got.Partition] = got.Partition, true
	}
	const keys = 61 // no multiple of anything
	ctx, cancel := c.Soon()
	defer cancel()
	for range 3 {
		rs := r.make("single", keys, keys)
		for i := range rs {
			rs[i].Key = append([]byte("key-"), byte(i))
		}
		for i, got := range r.send("p", rs[:keys/2]...) {
			note("publish", &rs[i], got)
		}
		got, err := r.trySendBatch(ctx, s, "p", rs[keys/2:])
		c.Must(err, "publish a batch")
		for i := range got {
			note("batch", &rs[keys/2+i], got[i])
		}
		rs = r.make("again", keys, keys)
		for i := range rs {
			rs[i].Key = append([]byte("key-"), byte(i))
		}
		got, err = r.trySend(ctx, again, "q", rs...)
		c.Must(err, "publish through another handle")
		for i := range got {
			note("publish through another handle", &rs[i], got[i])
		}
	}
	if n := len(r.partitionList()); n > 1 && len(used) < 2 {
		c.Errorf("%d keys went to %d of %d partitions", keys, len(used), n)
	}
	for _, p := range r.partitionList() {
		for i, got := range r.send("p", r.pinned("pin", 2, p.ID)...) {
			if got.Partition != p.ID {
				c.Errorf("record %d pinned to partition %d went to %d", i, p.ID, got.Partition)
			}
		}
	}
	for _, rec := range r.judge() {
		if p, ok := where[string(rec.Key)]; ok && p != rec.Partition {
			c.Errorf("key %q was read from partition %d, the receipt says %d", rec.Key, rec.Partition, p)
		}
	}
}

// streamSendOrder sends in order, while connections are cut or answers lost if
// the harness can do that. A batch of which a part failed promises no order.
func streamSendOrder(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	for _, fault := range []FaultKind{FaultAnswerLost, FaultConnectionCut} {
		if c.Harness().Faults[fault] != nil {
			c.Inject(fault)
			c.Note("fault", "%s", fault)
			break
		}
	}
	var ordered []string
	for i, chunk := range slices.Collect(slices.Chunk(r.pinned("order", c.Harness().Messages, 0), 10)) {
		if i%2 == 0 {
			r.sendUntilOK(s, "p", chunk...)
			ordered = append(ordered, sentValues(chunk)...)
			continue
		}
		if _, err := r.trySendBatch(c.Context(), s, "p", chunk); err != nil {
			r.retryable(err)
			continue
		}
		ordered = append(ordered, sentValues(chunk)...)
	}
	c.stopFaults(c.Context())
	wanted, first := map[string]bool{}, []string(nil)
	for _, v := range ordered {
		wanted[v] = true
	}
	for _, v := range valuesOf(r.judge()) {
		if wanted[v] {
			delete(wanted, v)
			first = append(first, v)
		}
	}
	r.sameValues(first, ordered, "the order of one producer's records")
}

// sendUntilOK publishes each record until it is acknowledged.
func (r *streamRun) sendUntilOK(s broker.Stream, who string, rs ...broker.Record) {
	for i := range rs {
		for {
			_, err := r.trySend(r.Context(), s, who, rs[i])
			if err == nil {
				break
			}
			r.retryable(err)
		}
	}
}

// retryable ends the case unless err is of the kind that trouble may cause.
func (r *streamRun) retryable(err error) {
	if r.Context().Err() != nil || !errors.Is(err, broker.ErrUnknownOutcome) && !broker.IsTemporary(err) {
		r.Fatalf("publish: %v, want a temporary error or an unknown outcome", err)
	}
}

func streamRetryDedup(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	in := c.Inject(FaultAnswerLost)
	rs := r.make("retry", c.Harness().Messages, 8)
	for _, chunk := range slices.Collect(slices.Chunk(rs, 20)) {
		ctx, cancel := c.Soon()
		_, err := r.trySendBatch(ctx, s, "p", chunk)
		cancel()
		for i := range chunk {
			if e := broker.ErrorAt(err, i); e != nil && !errors.Is(e, broker.ErrUnknownOutcome) {
				c.Errorf("a lost answer became %v, want nil or an unknown outcome", e)
			}
		}
	}
	c.Must(in.Stop(c.Context()), "stop the fault")
	r.judge()
}

func streamReceipts(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	rs := r.make("receipt", 30, 6)
	receipts := r.send("p", rs[:10]...)
	receipts = append(receipts, r.sendBatch("p", rs[10:])...)
	if !r.offsets {
		where := map[string]int32{}
		for i, got := range receipts {
			where[string(rs[i].Value)] = got.Partition
		}
		for _, rec := range r.judge() {
			if p := where[string(rec.Value)]; p != rec.Partition {
				c.Errorf("%q is in partition %d, its receipt says %d", rec.Value, rec.Partition, p)
			}
		}
		return
	}
	at := map[streamSlot]int{}
	for i, got := range receipts {
		slot := streamSlot{got.Partition, got.Offset}
		if j, ok := at[slot]; ok {
			c.Errorf("the receipts %d and %d both say %v", j, i, slot)
		}
		at[slot] = i
		if got.Duplicate {
			c.Errorf("receipt %d says duplicate of a record published once", i)
		}
	}
	for _, rec := range r.judge() {
		slot := streamSlot{rec.Partition, rec.Offset()}
		if i, ok := at[slot]; !ok {
			c.Errorf("%q is at %v, which no receipt says", rec.Value, slot)
		} else if string(rec.Value) != string(rs[i].Value) {
			c.Errorf("%v holds %q, its receipt is for %q", slot, rec.Value, rs[i].Value)
		}
	}
	for slot, i := range at {
		p := r.partition(slot.partition)
		if slot.offset.Compare(p.First) < 0 || slot.offset.Compare(p.Next) >= 0 {
			c.Errorf("receipt %d says %v, the partition goes from %v to %v", i, slot, p.First, p.Next)
		}
	}
}
