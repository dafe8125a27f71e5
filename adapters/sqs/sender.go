package sqs

import (
	"cmp"
	"context"
	"errors"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"

	"github.com/queuestream/broker"
)

// batchEntries is the most entries that a batch request of SQS or SNS takes.
const batchEntries = 10

// batchIDs are the ids of a batch's entries.
var batchIDs = [batchEntries]string{"0", "1", "2", "3", "4", "5", "6", "7", "8", "9"}

// batchIndex returns the entry that id names, of n, or -1.
func batchIndex(id *string, n int) int {
	if id == nil {
		return -1
	}
	i, err := strconv.Atoi(*id)
	if err != nil || i < 0 || i >= n {
		return -1
	}
	return i
}

// An outgoing is an entry of a batch to be. It carries its caller's context,
// since a batch serves several callers: one that has given up is not sent.
type outgoing struct {
	ctx   context.Context
	*wire // which is copied nowhere on its way
}

type sent = broker.Result[string] // the value is the sequence number, or the service's message id

// unanswered is the failure of an entry that an answer leaves out.
var unanswered = &failure{
	kind: broker.ErrUnavailable, err: errors.New("the answer leaves the entry out"), retry: true, maybe: true,
}

// An answer is what the service says of each entry of a batch.
type answer []sent

func newAnswer(results []sent) answer {
	for i := range results {
		results[i].Err = unanswered
	}
	return results
}

func (a answer) accepted(entry, messageID, sequence *string) {
	if i := batchIndex(entry, len(a)); i >= 0 {
		a[i] = sent{Value: aws.ToString(cmp.Or(sequence, messageID))}
	}
}

func (a answer) refused(entry, code, message *string, senderFault bool) {
	if i := batchIndex(entry, len(a)); i >= 0 {
		a[i].Err = judgeEntry(code, message, senderFault)
	}
}

// A sender coalesces sends into batches and tries failed entries again until
// their caller's context ends.
type sender struct {
	b       *Broker
	batcher *broker.Batcher[outgoing, string]
	calls   calls
	chain   bool // messages of a group go one after the other
	sizes   [batchEntries + 1]atomic.Int64
	name    string // of the queue or topic

	retries atomic.Int64
	told    atomic.Int64 // when the log was last told of one, in ns since 1970
}

// The log is told of a message that is tried again once that was in vain
// tellAfter times, and every tellEvery.
const (
	tellAfter = 5
	tellEvery = 10 * time.Second
)

// retried counts a message that is sent again after f, its failure number tries.
func (s *sender) retried(f *failure, tries int) {
	n := s.retries.Add(1)
	if tries < tellAfter {
		return
	}
	now, told := time.Now().UnixNano(), s.told.Load()
	if now-told >= int64(tellEvery) && s.told.CompareAndSwap(told, now) {
		s.b.log.Warn("sqs: sending failed; trying again", "queue", s.name, "retries", n, "error", f.err)
	}
}

// newSender returns a sender over call, which carries out one request and sets
// a result for each entry; an error is the whole request's.
func newSender(b *Broker, name string, maxBytes int, fifo bool,
	call func(ctx context.Context, items []outgoing, results []sent) error,
) *sender {
	s := &sender{b: b, name: name, chain: fifo && !b.o.BatchGroups}
	o := broker.BatcherOptions[outgoing, string]{
		MaxItems:    batchEntries,
		MaxBytes:    maxBytes,
		Size:        func(i outgoing) int { return i.size },
		MaxInFlight: b.o.SendConcurrency,
		Send: func(ctx context.Context, items []outgoing, results []sent) {
			growStack(0)
			s.send(ctx, items, results, call)
		},
	}
	if fifo {
		o.Key = func(i outgoing) string { return i.group }
		o.OnePerKey = !b.o.BatchGroups
	}
	s.batcher = broker.NewBatcher(o)
	return s
}

// growStack makes the stack as large as the AWS client's calls need it, 32 KiB,
// while there is next to nothing on it: grown on the way down it is copied four
// times with all its frames, for each goroutine that begins to send. The room is
// never used, so that nobody clears it.
//
//go:noinline
func growStack(use int) byte {
	if use == 0 {
		return 0
	}
	var room [20 << 10]byte
	return room[use]
}

// send carries out one batch: one request, and more where the service refuses
// it as a whole.
func (s *sender) send(ctx context.Context, items []outgoing, results []sent,
	call func(ctx context.Context, items []outgoing, results []sent) error,
) {
	live, at := items, []int(nil)
	for i := range items {
		if err := broker.ContextError(items[i].ctx); err != nil && at == nil {
			live, at = make([]outgoing, 0, len(items)), make([]int, 0, len(items))
			for j := range i {
				live, at = append(live, items[j]), append(at, j)
			}
			results[i].Err = err
		} else if err != nil {
			results[i].Err = err
		} else if at != nil {
			live, at = append(live, items[i]), append(at, i)
		}
	}
	if at == nil {
		s.request(ctx, live, results, call)
		return
	}
	if len(live) == 0 {
		return
	}
	out := make([]sent, len(live))
	s.request(ctx, live, out, call)
	for j, i := range at {
		results[i] = out[j]
	}
}

func (s *sender) request(ctx context.Context, items []outgoing, results []sent,
	call func(ctx context.Context, items []outgoing, results []sent) error,
) {
	s.sizes[len(items)].Add(1)
	rctx, cancel := context.WithTimeout(ctx, s.b.o.RequestTimeout)
	err := call(rctx, items, results)
	cancel()
	if err == nil {
		return
	}
	f := s.b.judge(ctx, err)
	if len(items) > 1 && isContent(f.kind) { // it may be one message that is to blame
		half := len(items) / 2
		s.request(ctx, items[:half], results[:half], call)
		s.request(ctx, items[half:], results[half:], call)
		return
	}
	for i := range results {
		results[i].Err = f
	}
}

// isContent tells whether kind blames what was sent.
func isContent(kind error) bool {
	return errors.Is(kind, broker.ErrTooLarge) || errors.Is(kind, broker.ErrInvalid) || errors.Is(kind, broker.ErrUnsupported)
}

// calls are those of one and many that have not ended, between tries too.
type calls struct {
	mu  sync.Mutex
	now *sync.WaitGroup
}

func (c *calls) begin() *sync.WaitGroup {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now == nil {
		c.now = &sync.WaitGroup{}
	}
	c.now.Add(1)
	return c.now
}

// drain waits until the calls that have begun have ended, or ctx ends.
func (s *sender) drain(ctx context.Context) error {
	c := &s.calls
	c.mu.Lock()
	begun := c.now
	c.now = nil
	c.mu.Unlock()
	if begun == nil {
		return nil
	}
	ended := make(chan struct{})
	go func() {
		begun.Wait()
		close(ended)
	}()
	select {
	case <-ended:
		return nil
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
}

// one sends one message.
func (s *sender) one(ctx context.Context, w wire) (string, error) {
	defer s.calls.begin().Done()
	maybe := false
	for try := 1; ; try++ {
		seq, err := s.batcher.Do(ctx, outgoing{ctx, &w})
		f, ok := errors.AsType[*failure](err)
		if !ok || !f.retry {
			return seq, settled(err, maybe)
		}
		maybe = maybe || f.maybe
		s.retried(f, try)
		if !pause(ctx, backoff(try)) {
			return "", gaveUp(ctx, f, maybe)
		}
	}
}

// settled is the error of a call that is not tried again. maybe: an earlier try
// may have been carried out, unless what is sent is to blame.
func settled(err error, maybe bool) error {
	f, ok := errors.AsType[*failure](err)
	if ok {
		err = f.cause()
	}
	if maybe && !(ok && isContent(f.kind)) {
		return broker.UnknownOutcome(err)
	}
	return err
}

// many sends what has no error in errs yet, and sets seqs and errs.
func (s *sender) many(ctx context.Context, ws []wire, seqs []string, errs []error) {
	defer s.calls.begin().Done()
	p := &publication{
		s: s, ctx: ctx, ws: ws, seqs: seqs, errs: errs,
		state: make([]publishing, len(ws)),
		done:  make(chan struct{}),
	}
	first := p.order()
	if p.left == 0 {
		return
	}
	p.begin(first)
	select {
	case <-p.done:
	case <-ctx.Done():
		p.abandon()
	}
}

// A publication is one PublishBatch under way. Of each group of a FIFO queue
// one message is under way at a time; the next follows once that has its
// result. Everything else goes at once. mu guards all below it.
type publication struct {
	s    *sender
	ctx  context.Context // of the call that the publication is
	ws   []wire
	done chan struct{}

	mu    sync.Mutex
	seqs  []string
	errs  []error
	state []publishing
	left  int
	ended bool // the caller has gone: nothing is written any more
}

type publishing struct {
	last  *failure // of the tries so far
	next  int32    // of the group; 0: none (the first is nobody's next)
	tries int32
	sent  bool
	maybe bool
	done  bool
}

// order links the messages of each group and returns what may go at once.
func (p *publication) order() []int {
	first := make([]int, 0, len(p.ws))
	last := map[string]int{}
	for i := range p.ws {
		if p.errs[i] != nil {
			p.state[i].done = true
			continue
		}
		p.left++
		if group := p.ws[i].group; p.s.chain && group != "" {
			before, ok := last[group]
			last[group] = i
			if ok {
				p.state[before].next = int32(i)
				continue
			}
		}
		first = append(first, i)
	}
	return first
}

// begin hands over all that may go at once.
func (p *publication) begin(first []int) {
	items := make([]outgoing, len(first))
	for j, i := range first {
		items[j] = outgoing{p.ctx, &p.ws[i]}
		p.state[i].sent = true
	}
	err := p.s.batcher.GoAll(p.ctx, items, func(j int, seq string, err error) {
		if i := p.finish(first[j], seq, err); i >= 0 {
			p.submit(i)
		}
	})
	if err == nil {
		return
	}
	for _, i := range first {
		p.mu.Lock()
		p.state[i].sent = false
		p.mu.Unlock()
		p.submit(p.finish(i, "", err))
	}
}

// submit hands message i to the batcher, or, once that is closed or ctx has
// ended, it and its successors to their end.
func (p *publication) submit(i int) {
	for i >= 0 {
		p.mu.Lock()
		p.state[i].sent = true
		p.mu.Unlock()
		err := p.s.batcher.Go(p.ctx, outgoing{p.ctx, &p.ws[i]}, func(seq string, err error) {
			p.submit(p.finish(i, seq, err))
		})
		if err == nil {
			return
		}
		p.mu.Lock()
		p.state[i].sent = false
		p.mu.Unlock()
		i = p.finish(i, "", err)
	}
}

// finish takes the result of message i and returns what may go now, or -1.
func (p *publication) finish(i int, seq string, err error) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	st := &p.state[i]
	if st.done || p.ended {
		return -1
	}
	if f, ok := errors.AsType[*failure](err); ok && f.retry && p.ctx.Err() == nil {
		st.tries++
		st.sent, st.last = false, f
		st.maybe = st.maybe || f.maybe
		p.s.retried(f, int(st.tries))
		time.AfterFunc(backoff(int(st.tries)), func() { p.submit(i) })
		return -1
	}
	st.done = true
	p.seqs[i], p.errs[i] = seq, settled(err, st.maybe)
	if p.left--; p.left == 0 {
		close(p.done)
	}
	if st.next == 0 {
		return -1
	}
	return int(st.next)
}

// abandon ends the publication since ctx has ended.
func (p *publication) abandon() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.ended = true
	for i := range p.state {
		if st := &p.state[i]; !st.done {
			p.errs[i] = gaveUp(p.ctx, st.last, st.sent || st.maybe)
		}
	}
}

// close waits until all is answered or ctx ends, then ends the rest.
func (s *sender) close(ctx context.Context) error { return s.batcher.Close(ctx) }
