package broker

import (
	"context"
	"time"
)

// DeadLetterTo returns a DeadLetterFunc that publishes the record to a queue
// (or through an exchange): value, headers, where it comes from and why it
// failed. The message's ID is "stream/partition/offset", so that doing it twice
// can be told. Where the queue has groups, the record's key is the GroupID;
// where it deduplicates, the ID is the DedupID.
func DeadLetterTo(p Publisher) DeadLetterFunc {
	return func(ctx context.Context, r *Record, cause error) error {
		info := r.Info()
		m := DeadLetterMessage(Message{ID: info.ID, Body: r.Value, Headers: r.Headers}, deadLetterOf(info, cause))
		m.Headers = append(m.Headers, SourceHeaders(r)...)
		if q, ok := p.(interface{ Capabilities() QueueCapabilities }); ok {
			c := q.Capabilities()
			if c.Groups {
				m.GroupID = info.Key
			}
			if c.Dedup {
				m.DedupID = info.ID
			}
		}
		_, err := p.Publish(ctx, m)
		return err
	}
}

// DeadLetterStream returns a DeadLetterFunc that appends the record to another
// stream: key, value, headers, where it comes from and why it failed. A
// tombstone becomes an empty value with the header x-source-tombstone, so that
// it deletes no other dead letter.
func DeadLetterStream(s Stream) DeadLetterFunc {
	return func(ctx context.Context, r *Record, cause error) error {
		why := deadLetterOf(r.Info(), cause)
		out := Record{Key: r.Key, Value: r.Value}
		out.Headers = append(DeadLetterMessage(Message{Headers: r.Headers}, why).Headers, SourceHeaders(r)...)
		if r.Tombstone {
			out.Headers = append(out.Headers, Header{HeaderSourceTombstone, "true"})
		}
		_, err := s.Publish(ctx, out)
		return err
	}
}

// HeaderSourceTombstone marks a dead letter whose record was a tombstone.
const HeaderSourceTombstone = "x-source-tombstone"

func deadLetterOf(info Info, cause error) DeadLetter {
	reason := ""
	if cause != nil {
		reason = cause.Error()
	}
	return DeadLetter{Reason: reason, Queue: info.Source, Attempts: info.Attempt, Time: time.Now()}
}
