package kafka

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"time"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// A shareNode is the share session of one member with one broker: one request
// at a time, over one connection, each with the next epoch. What the broker
// has handed out belongs to the session; it ends with the connection.
type shareNode struct {
	c    *Consumer
	id   int32
	wake chan struct{} // a token while there may be work

	// Guarded by Consumer.mu.
	epoch    int32                   // of the next request; 0 opens a session
	sent     map[topicPartition]bool // the partitions of the session
	assigned int                     // partitions that the broker leads
	handed   int                     // deliveries with the program
	acks     []*ackOp                // to be sent
	splits   [][]*ackOp              // refused together, to be tried in parts
	backoff  time.Duration
}

var (
	errGivenBack    = errors.New("the consumer was closed")
	errMoved        = errors.New("the partition has another leader")
	errFencedMember = errors.New("the share group has removed this member")
)

// lost says that a record went back to the queue, and why.
func lost(cause error) error { return fmt.Errorf("%w: %w", broker.ErrLeaseLost, cause) }

func (n *shareNode) signal() {
	select {
	case n.wake <- struct{}{}:
	default:
	}
}

// run works until the consumer is closed: acknowledgements first, with the next
// fetch if it can carry them, then fetches. ctx ends it without waiting for what is under way.
func (n *shareNode) run(ctx context.Context) {
	for {
		n.c.mu.Lock()
		if n.c.closed {
			n.c.mu.Unlock()
			n.close()
			return
		}
		ops := n.takeAcks()
		fetch := (*kmsg.ShareFetchRequest)(nil)
		if ops == nil || n.carries(ops) {
			fetch = n.buildFetch(ops)
		}
		n.c.mu.Unlock()
		var err error
		switch {
		case fetch != nil:
			err = n.fetch(ctx, fetch, ops)
		case ops != nil:
			err = n.acknowledge(ctx, ops)
		default:
			select {
			case <-n.wake:
				continue
			case <-ctx.Done():
				return
			}
		}
		if ctx.Err() != nil {
			return
		}
		if err != nil {
			n.failed(ctx, err)
		} else {
			n.backoff = 0
		}
	}
}

// failed waits a moment after a failure.
func (n *shareNode) failed(ctx context.Context, err error) {
	err = classify(err)
	n.c.log(slog.LevelWarn, "kafka: share session", "node", n.id, "error", err)
	if isUnauthorized(err) || errors.Is(err, broker.ErrNotFound) {
		n.c.refuse(fail("receive", n.c.q.name, err))
	}
	n.backoff = min(max(2*n.backoff, 20*time.Millisecond), time.Second)
	_ = sleep(ctx, n.backoff) //nolint:errcheck // the loop looks at ctx
}

// request sends one request of the session. Without an answer the session is
// over, and with it all that was handed out.
func (n *shareNode) request(ctx context.Context, req kmsg.Request) (kmsg.Response, error) {
	resp, err := n.c.client.Broker(int(n.id)).Request(ctx, req)
	if err != nil {
		n.c.mu.Lock()
		n.reset(fmt.Errorf("the connection was lost: %w", err))
		n.c.mu.Unlock()
		n.c.member.lookAgain() // its partitions may have other leaders by now
		return nil, err
	}
	return resp, nil
}

// answered reads the code of a whole answer, and counts the epoch on.
func (n *shareNode) answered(code int16, message *string) error {
	err := kerr.ErrorForCode(code)
	n.c.mu.Lock()
	defer n.c.mu.Unlock()
	switch {
	case err == nil:
		if n.epoch == math.MaxInt32 {
			n.epoch = 0
		}
		n.epoch++
		return nil
	case errors.Is(err, kerr.ShareSessionNotFound), errors.Is(err, kerr.InvalidShareSessionEpoch):
		n.reset(err)
	case errors.Is(err, kerr.ShareSessionLimitReached):
		n.reset(err)
	}
	if message != nil {
		err = fmt.Errorf("%w: %s", err, *message)
	}
	return err
}

// reset begins a new session; what the old one held is lost. c.mu is held.
func (n *shareNode) reset(cause error) {
	n.epoch = 0
	clear(n.sent)
	n.failAll(cause)
	for _, l := range n.c.locks {
		if l.node == n {
			n.c.lose(l)
		}
	}
}

// close ends the session in good order, which gives back what it holds.
func (n *shareNode) close() {
	n.c.mu.Lock()
	epoch := n.epoch
	n.epoch = 0
	n.c.mu.Unlock()
	if epoch == 0 {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), closeTimeout/4)
	defer cancel()
	req := kmsg.NewPtrShareAcknowledgeRequest()
	req.GroupID, req.MemberID, req.ShareSessionEpoch = n.group(), n.member(), -1
	if _, err := n.c.client.Broker(int(n.id)).Request(ctx, req); err != nil {
		n.c.log(slog.LevelInfo, "kafka: closing a share session", "node", n.id, "error", err)
	}
}

func (n *shareNode) group() *string {
	g := shareGroup(n.c.q.name)
	return &g
}

func (n *shareNode) member() *string { return &n.c.member.id }
