package conformance

import (
	"context"
	"slices"
	"sync"

	"github.com/queuestream/broker"
)

var streamFaults = map[int]StreamCase{
	90: {Config: partitions(3), Run: streamUnder(FaultConnectionCut)},
	91: {Config: partitions(3), Run: streamUnder(FaultAnswerLost)},
	92: {Needs: broker.StreamCapabilities{Durable: true}, Config: partitions(3), Run: streamUnder(FaultKill)},
	93: {Config: partitions(3), Run: streamUnder(FaultPause)},
	94: {Config: partitions(3), Run: streamUnder(FaultBlackHole)},
	95: {Config: partitions(3), Run: streamUnder(FaultSlowLink)},
	96: {Config: partitions(3), Run: streamConsumerKill},
	97: {Config: partitions(4), Run: streamMillion},
}

// streamUnder repeats, while the fault lasts, what must hold without it:
// nothing lost or invented, order of partitions and producers, every group
// reads everything, and members resume behind what is committed.
func streamUnder(kind FaultKind) func(c *C, s broker.Stream) {
	return func(c *C, s broker.Stream) {
		r := newStreamRun(c, s)
		shared, alone := c.Name("group"), c.Name("group")
		var got, also tally
		stops := []func(){
			r.workThrough(r.join(shared, broker.GroupOptions{}, nil), &got),
			r.workThrough(r.join(shared, broker.GroupOptions{}, nil), &got),
			r.workThrough(r.join(alone, broker.GroupOptions{}, nil), &also),
		}
		values := r.loadThrough("before")
		in := c.Inject(kind)
		values = append(values, r.loadThrough("under")...)
		if in.Bites != nil { // a fault may need traffic to bite
			for in.Bites() == 0 && c.Context().Err() == nil {
				values = append(values, r.loadThrough("more")...)
			}
		}
		c.Must(in.Stop(c.Context()), "end the fault")
		values = append(values, r.loadThrough("after")...)
		r.complete("the shared group", &got, values)
		r.complete("the other group", &also, values)
		for _, stop := range stops {
			stop()
		}
		r.stored(shared)
		r.stored(alone)
		r.judge()
	}
}

// streamConsumerKill kills members that have received and committed a part.
func streamConsumerKill(c *C, s broker.Stream) {
	r := newStreamRun(c, s)
	group := c.Name("group")
	values := r.load("before")
	var got tally
	for i := range 2 {
		b, kill := c.victim()
		m := r.joinStream(r.reopen(b, s), group, broker.GroupOptions{}, nil)
		ctx, cancel := c.Within(3 * c.h.Soon) // the one before may have to be missed first
		rs, err := m.poll(ctx, 16)
		cancel()
		c.Must(err, "receive as member %d", i)
		half := rs[:len(rs)/2]
		m.processed(half...)
		got.add(half...)
		if len(half) > 0 {
			m.commit(half...)
		}
		m.die(kill)
		values = append(values, r.load("after")...)
	}
	_, stop := r.share(group, 2, &got)
	for range 3 { // times Soon
		if c.Until(c.h.Soon, func() bool { return got.has(values) }) {
			break
		}
	}
	r.complete("the members left", &got, values)
	stop()
	r.stored(group)
	r.judge()
}

// loadThrough is load for a run under a fault: what fails for a time is
// published again.
func (r *streamRun) loadThrough(tag string) []string {
	chunks := slices.Collect(slices.Chunk(r.make(tag, r.C.h.Messages, 16), max(1, r.C.h.Messages/(2*r.C.h.Workers))))
	r.parallel(r.C.h.Workers, func(w int) {
		for i := w; i < len(chunks); i += r.C.h.Workers {
			r.sendUntilOK(r.stream, "producer "+itoa(w), chunks[i]...)
		}
	})
	var values []string
	for _, chunk := range chunks {
		values = append(values, sentValues(chunk)...)
	}
	return values
}

// streamMillion moves many records through a group and counts.
func streamMillion(c *C, s broker.Stream) {
	n := c.Harness().Million
	if n == 0 {
		c.Skip("Harness.Million is 0")
	}
	r := newStreamRun(c, s)
	m := r.join(c.Name("group"), broker.GroupOptions{}, nil)
	var wg sync.WaitGroup
	wg.Add(1)
	seen := make([]bool, n)
	double, strange := 0, 0
	c.Go(func() {
		defer wg.Done()
		for left := n; left > 0; {
			rs, err := m.consumer().Receive(c.Context(), 1000)
			c.Must(err, "receive, %d of %d are missing", left, n)
			for _, rec := range rs {
				i, ok := millionth(rec.Value)
				switch {
				case !ok || i >= n:
					strange++
				case seen[i]:
					double++
				default:
					seen[i] = true
					left--
				}
			}
			c.Must(m.consumer().Commit(c.Context(), rs...), "commit")
		}
	})
	const batch = 1000
	workers := c.Harness().Workers
	r.parallel(workers, func(w int) {
		rs := make([]broker.Record, 0, batch)
		for from := w * batch; from < n; from += workers * batch {
			rs = rs[:0]
			for i := from; i < min(from+batch, n); i++ {
				rs = append(rs, broker.Record{Value: []byte(itoa(i))})
			}
			_, err := s.PublishBatch(c.Context(), rs)
			c.Must(err, "publish a batch of %d", len(rs))
		}
	})
	wg.Wait()
	if strange > 0 || double > 0 && s.Capabilities().Idempotent {
		c.Errorf("%d of %d records came twice, %d were never sent", double, n, strange)
	}
	c.Note("records", "%d, %d twice", n, double)
	total, err := r.lagOf(c.Context(), m.group)
	c.Must(err, "Lag")
	if total != 0 && s.Capabilities().ExactLag {
		c.Errorf("the lag is %d after everything was committed", total)
	}
}

func (r *streamRun) lagOf(ctx context.Context, group string) (int64, error) {
	lags, err := r.stream.Lag(ctx, group)
	total := int64(0)
	for _, l := range lags {
		total += l.Lag
	}
	return total, err
}

// millionth reads what streamMillion published.
func millionth(value []byte) (int, bool) {
	n := 0
	for _, b := range value {
		if b < '0' || b > '9' {
			return 0, false
		}
		n = 10*n + int(b-'0')
	}
	return n, len(value) > 0 && len(value) < 10
}
