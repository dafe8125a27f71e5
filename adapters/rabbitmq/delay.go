package rabbitmq

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"sync"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// The ladder: level n delays by 2ⁿ units. A message's routing key has a bit for
// each level, the highest first, and ends in the hash of its target; every
// level either delays it (its queue expires it to the next lower exchange) or
// passes it on. All messages of a queue wait equally long, so none blocks
// another. The expiry uses at-least-once dead-lettering, so none is lost.
const (
	delayPrefix = "broker.delay."
	delayLevels = 28
	delayUnit   = 16 * time.Millisecond

	delayDeliver = delayPrefix + "deliver" // topic exchange: to the target queues
	delayLost    = delayPrefix + "lost"    // fanout exchange and queue: the target was deleted meanwhile
)

func delayName(level int) string { return delayPrefix + strconv.Itoa(level) }

// delayKey returns the routing key of a delay to a queue, and the highest
// level that delays. A delay is rounded up to delayUnit.
func delayKey(queue string, delay time.Duration) (key string, top int) {
	ticks := uint64((delay + delayUnit - 1) / delayUnit) //nolint:gosec // positive
	ticks = max(1, min(ticks, 1<<delayLevels-1))
	b := make([]byte, 0, 2*delayLevels+delayHashLen)
	for level := delayLevels - 1; level >= 0; level-- {
		b = append(b, '0'+byte(ticks>>level&1), '.')
	}
	return string(append(b, delayHash(queue)...)), bits.Len64(ticks) - 1
}

const delayHashLen = 32

// delayHash makes one word of a routing key of any queue's name.
func delayHash(queue string) string {
	sum := sha256.Sum256([]byte(queue))
	return hex.EncodeToString(sum[:delayHashLen/2])
}

// delayTarget is the binding of a queue to the deliver exchange.
func delayTarget(queue string) string { return strings.Repeat("*.", delayLevels) + delayHash(queue) }

// A ladder declares its queues at the first delay of each connection, and binds
// each target once.
type ladder struct {
	b    *Broker
	lock chan struct{} // a token

	mu         sync.Mutex
	generation *generation
	bound      map[string]struct{}
}

func newLadder(b *Broker) *ladder {
	l := &ladder{b: b, lock: make(chan struct{}, 1)}
	l.lock <- struct{}{}
	return l
}

// route returns where to publish what shall reach queue after delay.
func (l *ladder) route(ctx context.Context, queue string, delay time.Duration) (exchange, key string, err error) {
	key, top := delayKey(queue, delay)
	if err := l.ensure(ctx, queue); err != nil {
		return "", "", fmt.Errorf("delay queues: %w", err)
	}
	return delayName(top), key, nil
}

func (l *ladder) has(g *generation, queue string) (ladder, target bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.generation != g {
		return false, false
	}
	_, target = l.bound[queue]
	return true, target
}

func (l *ladder) ensure(ctx context.Context, queue string) error {
	l.mu.Lock()
	g := l.generation
	l.mu.Unlock()
	if g != nil && !g.isDead() {
		if _, ok := l.has(g, queue); ok {
			return nil
		}
	}
	select {
	case <-l.lock:
		defer func() { l.lock <- struct{}{} }()
	case <-ctx.Done():
		return broker.ContextError(ctx)
	}
	g, err := l.b.control.get(ctx)
	if err != nil {
		return err
	}
	declared, bound := l.has(g, queue)
	if bound {
		return nil
	}
	err = l.b.channel(ctx, func(ch *amqp.Channel) error {
		if !declared {
			if err := declareLadder(ch); err != nil {
				return err
			}
		}
		return ch.QueueBind(queue, delayTarget(queue), delayDeliver, false, nil)
	})
	if err != nil {
		return err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.generation != g {
		l.generation, l.bound = g, map[string]struct{}{}
	}
	l.bound[queue] = struct{}{}
	return nil
}

// forget makes the next delay to a queue bind it again.
func (l *ladder) forget(queue string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.bound, queue)
}

// declareLadder declares everything without waiting in between; the last call
// waits, and reports what went wrong before.
func declareLadder(ch *amqp.Channel) error {
	durable, autoDelete, internal, noWait := true, false, false, true
	err := errors.Join(
		ch.ExchangeDeclare(delayLost, amqp.ExchangeFanout, durable, autoDelete, internal, noWait, nil),
		ch.ExchangeDeclare(delayDeliver, amqp.ExchangeTopic, durable, autoDelete, internal, noWait,
			amqp.Table{"alternate-exchange": delayLost}),
		declareNoWait(ch, delayLost, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum}),
		ch.QueueBind(delayLost, "", delayLost, noWait, nil))
	for level := range delayLevels {
		next := delayDeliver
		if level > 0 {
			next = delayName(level - 1)
		}
		prefix := strings.Repeat("*.", delayLevels-1-level)
		ttl := delayUnit << level
		err = errors.Join(err,
			ch.ExchangeDeclare(delayName(level), amqp.ExchangeTopic, durable, autoDelete, internal, noWait, nil),
			declareNoWait(ch, delayName(level), amqp.Table{
				amqp.QueueTypeArg:        amqp.QueueTypeQuorum,
				amqp.QueueMessageTTLArg:  ttl.Milliseconds(),
				amqp.QueueOverflowArg:    amqp.QueueOverflowRejectPublish,
				"x-dead-letter-exchange": next,
				"x-dead-letter-strategy": "at-least-once",
			}),
			ch.QueueBind(delayName(level), prefix+"1.#", delayName(level), noWait, nil),
			ch.ExchangeBind(next, prefix+"0.#", delayName(level), noWait, nil))
	}
	if err != nil {
		return err
	}
	_, err = ch.QueueDeclarePassive(delayName(delayLevels-1), true, false, false, false, nil)
	return err
}

func declareNoWait(ch *amqp.Channel, name string, args amqp.Table) error {
	_, err := ch.QueueDeclare(name, true, false, false, true, args)
	return err
}

// RemoveDelayQueues deletes the ladder of delay queues of the virtual host; the
// next delay makes it again; another program's next delay fails with
// [broker.ErrNotFound] before that. It is [broker.ErrConflict] while messages wait in
// it, or in "broker.delay.lost", which keeps what was delayed to a queue that
// was deleted meanwhile.
func (b *Broker) RemoveDelayQueues(ctx context.Context) error {
	names := []string{delayLost}
	for level := range delayLevels {
		names = append(names, delayName(level))
	}
	for _, n := range names {
		ready, _, err := b.inspect(ctx, n)
		if errors.Is(err, broker.ErrNotFound) {
			continue
		}
		if err == nil && ready > 0 {
			err = fmt.Errorf("%w: %q holds %d messages", broker.ErrConflict, n, ready)
		}
		if err != nil {
			return fail("remove delay queues", "", err)
		}
	}
	err := b.channel(ctx, func(ch *amqp.Channel) error {
		for _, n := range append(names, delayDeliver) {
			if err := ch.ExchangeDelete(n, false, false); err != nil {
				return err
			}
			if _, err := ch.QueueDelete(n, false, false, false); err != nil {
				return err
			}
		}
		return nil
	})
	b.ladder.reset()
	return fail("remove delay queues", "", err)
}

// reset makes the next delay declare the ladder again.
func (l *ladder) reset() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.generation = nil
}
