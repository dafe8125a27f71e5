package broker

import (
	"context"
	"maps"
	"net/url"
	"slices"
	"strings"
)

// Openers picks an adapter by the URL's scheme; there is no global registry:
//
//	openers := broker.Openers{"memory": memory.OpenURL, "kafka": kafka.OpenURL}
//	b, err := openers.Open(ctx, "kafka://localhost:9092")
type Openers map[string]func(ctx context.Context, url string) (Broker, error)

// Open opens the broker at rawURL. A scheme, in letters of either case, that is
// not in o is ErrUnsupported.
func (o Openers) Open(ctx context.Context, rawURL string) (Broker, error) {
	scheme, _, ok := strings.Cut(rawURL, ":")
	if ok {
		if open := o[strings.ToLower(scheme)]; open != nil {
			return open(ctx, rawURL)
		}
	}
	known := strings.Join(slices.Sorted(maps.Keys(o)), ", ")
	if !ok || scheme == "" {
		return nil, &Error{Op: "open", Err: Invalid("a URL without a scheme: want one of %s", known)}
	}
	return nil, &Error{Op: "open", Name: redactURL(rawURL), Err: Unsupported("scheme %q: want one of %s", scheme, known)}
}

// redactURL hides the password.
func redactURL(raw string) string {
	u, err := url.Parse(raw)
	if err != nil {
		return ""
	}
	return u.Redacted()
}

// DeclareQueue declares a queue and opens it. With MaxAttempts and without
// DeadLetter it also declares the dead-letter queue, named name+"-dead".
// Ordered picks what the broker needs: on SQS the names get the suffix ".fifo"
// if they lack it, and the Queue's Name tells.
func DeclareQueue(ctx context.Context, b Broker, name string, cfg QueueConfig) (Queue, error) {
	a, ok := As[Admin](b)
	if !ok {
		return nil, &Error{Op: "declare queue", Name: name, Err: Unsupported("the broker has no Admin")}
	}
	if n, ok := As[QueueNamer](b); ok {
		name = n.QueueName(name, cfg)
	}
	if cfg.DeadLetter == "" && cfg.MaxAttempts > 0 {
		if err := ValidateDeclaredName(name); err != nil { // before a dead-letter queue is left behind
			return nil, &Error{Op: "declare queue", Name: name, Err: err}
		}
		dead := QueueConfig{
			Ordered: cfg.Ordered, MaxBytes: cfg.MaxBytes, Shards: cfg.Shards,
			Temporary: cfg.Temporary, Tags: cfg.Tags,
		}
		cfg.DeadLetter = DeadLetterName(name)
		if err := a.DeclareQueue(ctx, cfg.DeadLetter, dead); err != nil {
			return nil, err
		}
	}
	if err := a.DeclareQueue(ctx, name, cfg); err != nil {
		return nil, err
	}
	return b.Queue(ctx, name, &QueueOptions{MaxAttempts: cfg.MaxAttempts, DeadLetter: cfg.DeadLetter})
}

// A QueueNamer is a broker that names queues by their configuration (SQS asks
// for the suffix ".fifo").
type QueueNamer interface {
	// QueueName returns the name under which a queue called name is declared.
	QueueName(name string, cfg QueueConfig) string
}

// DeadLetterName returns what DeclareQueue calls the dead-letter queue of a
// queue: name+"-dead", with SQS's suffix ".fifo" kept at the end, where it
// must be.
func DeadLetterName(queue string) string {
	const fifo = ".fifo"
	if base, ok := strings.CutSuffix(queue, fifo); ok {
		return base + "-dead" + fifo
	}
	return queue + "-dead"
}
