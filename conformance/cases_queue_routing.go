package conformance

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/queuestream/broker"
)

var queueRouting = map[int]QueueCase{
	84: {Run: direct},
	85: {Run: fanout},
	86: {Run: topic},
	87: {Run: headersMatch},
	88: {Run: unroutable},
	89: {Run: requestReply},
}

// router declares and opens an exchange. Where the broker has none of the kind,
// declaring it must be refused, which ends the case.
func (c *C) router(kind broker.ExchangeKind) (string, broker.Exchange) {
	admin := c.Admin()
	name := c.Name("exchange")
	err := admin.DeclareExchange(c.ctx, name, kind)
	x, ok := broker.As[broker.Exchanger](c.broker)
	if errors.Is(err, broker.ErrUnsupported) {
		c.WantErr(err, broker.ErrUnsupported, "declare a %s exchange", kind)
		c.Refused("declaring: %v", err)
	}
	c.Must(err, "declare a %s exchange", kind)
	if !ok {
		c.Fatalf("a %s exchange was declared, and the broker has no broker.Exchanger", kind)
	}
	c.Cleanup(func(ctx context.Context) error { return admin.DeleteExchange(ctx, name) })
	ex, err := x.Exchange(c.ctx, name)
	c.Must(err, "open the exchange")
	c.track("exchange", ex.Close)
	if got := ex.Capabilities().Kind; got != kind || ex.Name() != name {
		c.Errorf("declared the %s exchange %q, opened the %s exchange %q", kind, name, got, ex.Name())
	}
	return name, ex
}

// bound declares a queue with bindings and opens a consumer of it. A binding
// that is refused is reported by ok.
func (c *C) bound(exchange string, bindings ...broker.Binding) (q broker.Queue, k broker.Consumer) {
	q = c.DeclareQueue(nil)
	for _, b := range bindings {
		c.Must(c.Admin().Bind(c.ctx, q.Name(), exchange, b), "bind with %+v", b)
	}
	return q, c.Consumer(q, nil)
}

func (c *C) route(ex broker.Exchange, key, body string, h ...broker.Header) {
	_, err := ex.RouteTo(key).Publish(c.ctx, broker.Message{Body: []byte(body), Headers: h})
	if ex.Capabilities().Unroutable && errors.Is(err, broker.ErrNotFound) {
		return // no queue takes it; what came is checked by the caller
	}
	c.Must(err, "publish %q with the routing key %q", body, key)
}

func direct(c *C, _ broker.Queue) {
	name, ex := c.router(broker.ExchangeDirect)
	q, a := c.bound(name, broker.Binding{RoutingKey: "a"})
	_, ab := c.bound(name, broker.Binding{RoutingKey: "a"}, broker.Binding{RoutingKey: "b"})
	for _, key := range []string{"a", "b", "A", "a.b", "*"} {
		c.route(ex, key, "to "+key)
	}
	c.expectBodies(a, "bound with a", "to a")
	c.expectBodies(ab, "bound with a and b", "to a", "to b")
	_, err := ex.RouteTo("a").PublishBatch(c.ctx, []broker.Message{{Body: []byte("1")}, {Body: []byte("2")}})
	c.Must(err, "publish a batch to the exchange")
	c.expectBodies(a, "a batch", "1", "2")
	c.expectBodies(ab, "a batch", "1", "2")
	c.Must(c.Admin().Unbind(c.ctx, q.Name(), name, broker.Binding{RoutingKey: "a"}), "unbind")
	c.Eventually("an unbound queue gets nothing", func() bool {
		c.route(ex, "a", "again")
		return !slices.Contains(c.bodies(a), "again")
	})
	if got := c.bodies(ab); !slices.Contains(got, "again") {
		c.Errorf("the other queue is still bound, and received %q", got)
	}
	missing := c.Name("exchange")
	c.WantErr(c.Admin().Bind(c.ctx, q.Name(), missing, broker.Binding{RoutingKey: "a"}), broker.ErrNotFound, "bind to an exchange that does not exist")
	c.WantErr(c.Admin().Bind(c.ctx, c.Name("queue"), name, broker.Binding{RoutingKey: "a"}), broker.ErrNotFound, "bind a queue that does not exist")
}

func fanout(c *C, _ broker.Queue) {
	name, ex := c.router(broker.ExchangeFanout)
	var consumers []broker.Consumer
	for range 3 {
		_, k := c.bound(name, broker.Binding{})
		consumers = append(consumers, k)
	}
	_, twice := c.bound(name, broker.Binding{}, broker.Binding{})
	c.Nothing(twice, "nothing was published")
	m := broker.Message{ID: broker.NewID(), Body: []byte("\x00to all\xff"), CorrelationID: "c", ContentType: "t/x"}
	if ex.Capabilities().Queue.Headers {
		m.Headers = broker.Headers{{Key: "k", Value: "1"}, {Key: "k", Value: "2"}}
	}
	r, err := ex.RouteTo("").Publish(c.ctx, m)
	c.Must(err, "publish")
	if r.ID != m.ID {
		c.Errorf("published %q, the receipt says %q", m.ID, r.ID)
	}
	for _, k := range append(consumers, twice) {
		d := c.ReceiveOne(k)
		if d.ID != m.ID || string(d.Body) != string(m.Body) || !slices.Equal(d.Headers, m.Headers) || d.CorrelationID != m.CorrelationID || d.ContentType != m.ContentType {
			c.Errorf("published %+v, received %+v", m, d.Message)
		}
		c.Ack(d)
		c.quiet(k, "each bound queue gets one copy")
	}
}

// topicPatterns are patterns with the keys that they match of topicKeys.
var (
	topicKeys     = []string{"a", "b", "a.b", "a.c", "a.b.c", "b.a", "a.b.b", "ab", "a.bc"}
	topicPatterns = map[string][]string{
		"#":     topicKeys,
		"a.b":   {"a.b"},
		"a.#":   {"a", "a.b", "a.c", "a.b.c", "a.b.b", "a.bc"},
		"*":     {"a", "b", "ab"},
		"a.*":   {"a.b", "a.c", "a.bc"},
		"*.b":   {"a.b"},
		"#.b":   {"b", "a.b", "a.b.b"},
		"a.*.c": {"a.b.c"},
		"a.#.c": {"a.c", "a.b.c"},
		"#.b.#": {"b", "a.b", "a.b.c", "b.a", "a.b.b"},
		"*.*":   {"a.b", "a.c", "b.a", "a.bc"},
		"#.*":   topicKeys,
	}
)

func topic(c *C, _ broker.Queue) {
	name, ex := c.router(broker.ExchangeTopic)
	words := ex.Capabilities().TopicWords
	consumers := map[string]broker.Consumer{}
	for pattern := range topicPatterns {
		simple := !strings.Contains(pattern, "*") && (!strings.Contains(pattern, "#") || pattern == "#" || pattern == "a.#")
		if !words && !simple {
			q := c.DeclareQueue(nil)
			c.WantErr(c.Admin().Bind(c.ctx, q.Name(), name, broker.Binding{RoutingKey: pattern}), broker.ErrUnsupported, "bind with the pattern %q", pattern)
			continue
		}
		_, consumers[pattern] = c.bound(name, broker.Binding{RoutingKey: pattern})
	}
	_, consumers["a.b and #"] = c.bound(name, broker.Binding{RoutingKey: "a.b"}, broker.Binding{RoutingKey: "#"})
	for _, key := range topicKeys {
		c.route(ex, key, key)
	}
	for pattern, k := range consumers {
		want := topicPatterns[pattern]
		if want == nil {
			want = topicKeys
		}
		c.expectBodies(k, "bound with the pattern "+pattern, slices.Clone(want)...)
	}
}

func headersMatch(c *C, _ broker.Queue) {
	name, ex := c.router(broker.ExchangeHeaders)
	both := broker.Headers{{Key: "kind", Value: "a"}, {Key: "size", Value: "b"}}
	_, all := c.bound(name, broker.Binding{Headers: both})
	send := func() {
		c.route(ex, "", "both", both...)
		c.route(ex, "", "one", both[0])
		c.route(ex, "", "more", both[0], both[1], broker.Header{Key: "x", Value: "y"})
		c.route(ex, "", "wrong value", both[0], broker.Header{Key: "size", Value: "c"})
		c.route(ex, "", "none")
	}
	if !ex.Capabilities().MatchAny {
		q := c.DeclareQueue(nil)
		c.WantErr(c.Admin().Bind(c.ctx, q.Name(), name, broker.Binding{Headers: both, MatchAny: true}), broker.ErrUnsupported, "bind with MatchAny")
		send()
	} else {
		_, one := c.bound(name, broker.Binding{Headers: both, MatchAny: true})
		send()
		c.expectBodies(one, "any of the headers", "both", "one", "more", "wrong value")
	}
	c.expectBodies(all, "all of the headers", "both", "more")
}

func unroutable(c *C, _ broker.Queue) {
	_, ex := c.router(broker.ExchangeDirect)
	_, err := ex.RouteTo("nobody").Publish(c.ctx, broker.Message{Body: []byte("x")})
	if !ex.Capabilities().Unroutable {
		c.Must(err, "publish what no queue takes, where that is not claimed to be told")
		c.Refused("the exchange does not claim Unroutable")
	}
	c.WantErr(err, broker.ErrNotFound, "publish what no queue takes")
	q := c.DeclareQueue(nil)
	c.Must(c.Admin().Bind(c.ctx, q.Name(), ex.Name(), broker.Binding{RoutingKey: "here"}), "bind")
	for range 20 {
		_, err = ex.RouteTo("there").Publish(c.ctx, broker.Message{Body: []byte("x")})
		c.WantErr(err, broker.ErrNotFound, "publish what no queue takes")
		_, err = ex.RouteTo("here").Publish(c.ctx, broker.Message{Body: []byte("x")})
		c.Must(err, "publish between two that no queue takes")
	}
	rs, err := ex.RouteTo("there").PublishBatch(c.ctx, make([]broker.Message, 2))
	if len(rs) != 2 || !errors.Is(broker.ErrorAt(err, 0), broker.ErrNotFound) || !errors.Is(broker.ErrorAt(err, 1), broker.ErrNotFound) {
		c.Errorf("publish a batch that no queue takes: %d receipts, %v", len(rs), err)
	}
	if got := c.bodies(c.Consumer(q, nil)); len(got) != 20 {
		c.Errorf("20 were routed, %d came", len(got))
	}
}

func requestReply(c *C, q broker.Queue) {
	r, ok := broker.As[broker.ReplyQueuer](c.broker)
	if !ok {
		c.Refused("the broker has no broker.ReplyQueuer")
	}
	replies, err := r.ReplyQueue(c.ctx)
	if errors.Is(err, broker.ErrUnsupported) {
		c.Refused("a reply queue: %v", err)
	}
	c.Must(err, "make a reply queue")
	c.track("reply queue", replies.Close)
	other, err := r.ReplyQueue(c.ctx)
	c.Must(err, "make another reply queue")
	c.track("reply queue", other.Close)
	if replies.Name() == "" || replies.Name() == other.Name() {
		c.Errorf("two reply queues are named %q and %q", replies.Name(), other.Name())
	}
	mine, theirs := c.Consumer(replies, nil), c.Consumer(other, nil)
	server := c.Consumer(q, nil)
	const n = 10
	for i := range n {
		c.Publish(q, broker.Message{Body: fmt.Appendf(nil, "question %d", i), ReplyTo: replies.Name(), CorrelationID: fmt.Sprintf("id %d", i)})
	}
	c.Publish(q, broker.Message{Body: []byte("question x"), ReplyTo: other.Name(), CorrelationID: "id x"})
	for range n + 1 {
		d := c.ReceiveOne(server)
		to, err := c.broker.Queue(c.ctx, d.ReplyTo, nil)
		c.Must(err, "open the reply queue %q", d.ReplyTo)
		c.Publish(to, broker.Message{Body: append([]byte("answer to "), d.Body...), CorrelationID: d.CorrelationID})
		c.Must(to.Close(), "close the reply queue's handle")
		c.Ack(d)
	}
	seen := map[string]bool{}
	for _, d := range c.ReceiveN(mine, n) {
		var i int
		if _, err := fmt.Sscanf(string(d.Body), "answer to question %d", &i); err != nil || d.CorrelationID != fmt.Sprintf("id %d", i) {
			c.Errorf("the answer %q came with the correlation id %q", d.Body, d.CorrelationID)
		}
		seen[d.CorrelationID] = true
		c.Ack(d)
	}
	if len(seen) != n {
		c.Errorf("%d of %d questions were answered", len(seen), n)
	}
	if d := c.ReceiveOne(theirs); d.CorrelationID != "id x" {
		c.Errorf("the other caller received %q", d.CorrelationID)
	} else {
		c.Ack(d)
	}
	c.Nothing(mine, "all answers have come; a caller that waits runs into its time-out")
	c.Must(mine.Close(), "close the consumer")
	c.Must(replies.Close(), "close the reply queue")
	c.Eventually("the reply queue is gone", func() bool {
		to, err := c.broker.Queue(c.ctx, replies.Name(), nil)
		if err == nil {
			_, err = to.Publish(c.ctx, broker.Message{Body: []byte("late"), CorrelationID: "late"})
			c.Must(to.Close(), "close the reply queue's handle")
		}
		if err != nil && !errors.Is(err, broker.ErrNotFound) {
			c.Fatalf("publish to a reply queue that is gone: %v, want ErrNotFound", err)
		}
		return err != nil
	})
}
