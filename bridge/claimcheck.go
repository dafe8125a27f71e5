package bridge

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/bridge/blob"
)

// Headers of a task whose body is in a blob store.
const (
	HeaderClaimKey    = "x-claim-check-key"
	HeaderClaimSize   = "x-claim-check-size" // bytes
	HeaderClaimSHA256 = "x-claim-check-sha256"
)

// claim puts the body of task into the blob store, under a key made of r's
// coordinates, and returns the task with a pointer instead.
func (rt *Route) claim(ctx context.Context, r *broker.Record, task broker.Message) (broker.Message, error) {
	sum := sha256.Sum256(task.Body)
	key := fmt.Sprintf("%s/%d/%s-%.16s", safe(rt.Source.Name()), r.Partition, r.Offset(), dedupID(r, rt.Salt))
	if err := rt.Blobs.Put(ctx, key, task.Body); err != nil {
		return task, &broker.Error{Op: "claim check", Adapter: "bridge", Name: rt.Name, Temporary: true, Err: err}
	}
	rt.count.claimed.Add(1)
	task.Headers = task.Headers.With(HeaderClaimKey, key).
		With(HeaderClaimSize, strconv.Itoa(len(task.Body))).
		With(HeaderClaimSHA256, hex.EncodeToString(sum[:]))
	task.Body = nil
	return task, nil
}

// ClaimCheck is a middleware for the workers that consume the tasks: it
// fetches a body that the bridge put into a blob store. A body that is not
// there or differs from what was put rejects the task; a store that does not
// answer redelivers it.
func ClaimCheck(store blob.Store) broker.Middleware {
	return func(next broker.HandlerFunc) broker.HandlerFunc {
		return func(ctx context.Context, in broker.Incoming) error {
			h := *in.HeaderSet()
			key, ok := h.Lookup(HeaderClaimKey)
			if !ok {
				return next(ctx, in)
			}
			body, err := store.Get(ctx, key)
			if err != nil {
				if errors.Is(err, blob.ErrNotFound) {
					return broker.Reject(fmt.Errorf("claim check: %w", err))
				}
				return fmt.Errorf("claim check: %w", err)
			}
			sum := sha256.Sum256(body)
			if want := h.Get(HeaderClaimSHA256); hex.EncodeToString(sum[:]) != want {
				return broker.Reject(fmt.Errorf("claim check %s: the body has SHA-256 %x, the task says %s", key, sum, want))
			}
			in.SetPayload(body)
			return next(ctx, in)
		}
	}
}

// safe keeps letters, digits, "-", "_" and "." of a name, for use in a blob key.
func safe(name string) string {
	return strings.Map(func(c rune) rune {
		if c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_' || c == '.' {
			return c
		}
		return '_'
	}, name)
}
