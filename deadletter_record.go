package broker

import (
	"context"
	"errors"
	"strconv"
	"time"
)

// DeadLetterTo returns a DeadLetterFunc that publishes the record to a queue
// (or through an exchange): value, headers, where it comes from and why it
// failed. The message's ID is "stream/partition/offset", so that doing it twice
// can be told. Where the queue has groups, the record's key is the GroupID;
// where it deduplicates, the ID is the DedupID. A tombstone becomes an empty
// body with the header x-source-tombstone. Of a record that is too large for the
// queue the coordinates and the reason are published, without body and headers,
// and [HeaderDeadLetterOmitted]: the stream still has it.
func DeadLetterTo(p Publisher) DeadLetterFunc {
	return func(ctx context.Context, r *Record, cause error) error {
		info := r.Info()
		m := Message{ID: info.ID, Body: r.Value, Headers: deadLetterHeaders(r, info, cause)}
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
		if errors.Is(err, ErrTooLarge) {
			m.Body, m.Headers = nil, omittedHeaders(r, info, cause)
			_, err = p.Publish(ctx, m)
		}
		return err
	}
}

// DeadLetterStream returns a DeadLetterFunc that appends the record to another
// stream: key, value, headers, where it comes from and why it failed. A
// tombstone becomes an empty value with the header x-source-tombstone, so that
// it deletes no other dead letter. One that is too large becomes what DeadLetterTo
// makes of it, with its key.
func DeadLetterStream(s Stream) DeadLetterFunc {
	return func(ctx context.Context, r *Record, cause error) error {
		info := r.Info()
		_, err := s.Publish(ctx, Record{Key: r.Key, Value: r.Value, Headers: deadLetterHeaders(r, info, cause)})
		if errors.Is(err, ErrTooLarge) {
			_, err = s.Publish(ctx, Record{Key: r.Key, Headers: omittedHeaders(r, info, cause)})
		}
		return err
	}
}

// HeaderSourceTombstone marks a dead letter whose record was a tombstone.
const HeaderSourceTombstone = "x-source-tombstone"

// IsSourceHeader tells whether a header is one of a record's coordinates, as
// [SourceHeaders] and dead letters carry them.
func IsSourceHeader(key string) bool {
	switch key {
	case HeaderSourceStream, HeaderSourcePartition, HeaderSourceOffset, HeaderSourceKey, HeaderSourceTime, HeaderSourceTombstone:
		return true
	}
	return false
}

// deadLetterHeaders returns the record's headers, with why it failed and where it
// was read, in place of what they say of an earlier way.
func deadLetterHeaders(r *Record, info Info, cause error) Headers {
	why := DeadLetter{Queue: info.Source, Attempts: info.Attempt, Time: time.Now()}
	if cause != nil {
		why.Reason = cause.Error()
	}
	h := r.Headers.Without(IsSourceHeader)
	h = append(DeadLetterMessage(Message{Headers: h}, why).Headers, SourceHeaders(r)...)
	if r.Tombstone {
		h = append(h, Header{HeaderSourceTombstone, "true"})
	}
	return h
}

// omittedHeaders returns those of a dead letter whose record does not fit.
func omittedHeaders(r *Record, info Info, cause error) Headers {
	bare := *r
	bare.Headers = nil
	return deadLetterHeaders(&bare, info, cause).With(HeaderDeadLetterOmitted, strconv.Itoa(r.Size()))
}
