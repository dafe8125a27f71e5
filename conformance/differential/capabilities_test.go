package differential

import (
	"reflect"
	"testing"
	"time"

	"github.com/queuestream/broker"
)

// differ are the fields in which a profile is not what it imitates, and why.
var differ = map[string]string{
	"Durable": "memory survives no restart",
}

// A queue of a profile claims what the same queue of the real broker claims:
// then, since the suite tests both directions of each claim on both, they
// differ nowhere else.
func TestCapabilities(t *testing.T) {
	for _, p := range pairs {
		t.Run(p.name, func(t *testing.T) {
			real := p.open(t)
			imitation := openMemory(t.Context(), t, p.profile, 1)
			defer imitation.Close() //nolint:errcheck // nothing is lost by it
			for what, edit := range map[string]func(*broker.QueueConfig){
				"as programs use it":  func(*broker.QueueConfig) {},
				"content dedup":       func(c *broker.QueueConfig) { c.ContentDedup = true },
				"dedup by group":      func(c *broker.QueueConfig) { c.Dedup, c.DedupPerGroup = true, true },
				"a lease of 10 s":     func(c *broker.QueueConfig) { c.Lease = 10 * time.Second },
				"delayed":             func(c *broker.QueueConfig) { c.Delay = time.Second },
				"an hour to live":     func(c *broker.QueueConfig) { c.TTL = time.Hour },
				"priorities":          func(c *broker.QueueConfig) { c.MaxPriority = 5 },
				"too many priorities": func(c *broker.QueueConfig) { c.MaxPriority = 256 },
				"length":              func(c *broker.QueueConfig) { c.MaxLength = 10 },
				"lease of a day":      func(c *broker.QueueConfig) { c.Lease = 24 * time.Hour },
				"delay of an hour":    func(c *broker.QueueConfig) { c.Delay = time.Hour },
			} {
				t.Run(what, func(t *testing.T) {
					cfg := p.cfg
					edit(&cfg)
					queue, dead := p.newName("queue"), p.newName("dead")
					got, gotErr := p.claims(t, imitation, cfg, queue, dead)
					want, wantErr := p.claims(t, real, cfg, queue, dead)
					if refused(gotErr) != refused(wantErr) {
						t.Fatalf("declaring: the profile says %v, the broker %v", gotErr, wantErr)
					}
					compare(t, got, want)
				})
			}
		})
	}
}

// claims declares a queue and returns its capabilities.
func (p *pair) claims(t *testing.T, b broker.Broker, cfg broker.QueueConfig, queue, dead string) (broker.QueueCapabilities, error) {
	t.Helper()
	ctx := t.Context()
	admin := b.(broker.Admin)
	deadCfg := broker.QueueConfig{Ordered: cfg.Ordered && p.suffix != ""}
	if err := admin.DeclareQueue(ctx, dead, deadCfg); err != nil {
		t.Fatalf("declare the dead-letter queue: %v", err)
	}
	cfg.DeadLetter, cfg.MaxAttempts = dead, p.maxAttempts()
	defer func() {
		for _, name := range []string{queue, dead} {
			if err := admin.DeleteQueue(ctx, name); err != nil {
				t.Errorf("delete %s: %v", name, err)
			}
		}
	}()
	if err := admin.DeclareQueue(ctx, queue, cfg); err != nil {
		return broker.QueueCapabilities{}, err
	}
	q, err := b.Queue(ctx, queue, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close() //nolint:errcheck // so does the broker
	return q.Capabilities(), nil
}

// compare reports every field that is neither equal nor in differ.
func compare(t *testing.T, got, want any) {
	t.Helper()
	g, w := reflect.ValueOf(got), reflect.ValueOf(want)
	for i := range g.NumField() {
		name := g.Type().Field(i).Name
		if _, ok := differ[name]; !ok && !reflect.DeepEqual(g.Field(i).Interface(), w.Field(i).Interface()) {
			t.Errorf("%s: the profile claims %v, the broker %v", name, g.Field(i).Interface(), w.Field(i).Interface())
		}
	}
}

// Streams claim the same, too.
func TestStreamCapabilities(t *testing.T) {
	for _, p := range pairs {
		if p.cfg.Ordered {
			continue // the same broker as another pair
		}
		t.Run(p.name, func(t *testing.T) {
			real := p.open(t)
			imitation := openMemory(t.Context(), t, p.profile, 1)
			defer imitation.Close() //nolint:errcheck // nothing is lost by it
			name := p.newName("stream")
			var caps [2]broker.StreamCapabilities
			var errs [2]error
			for i, b := range []broker.Broker{imitation, real} {
				admin := b.(broker.Admin)
				if errs[i] = admin.DeclareStream(t.Context(), name, broker.StreamConfig{Partitions: 2}); errs[i] != nil {
					continue
				}
				defer func() {
					if err := admin.DeleteStream(t.Context(), name); err != nil {
						t.Error(err)
					}
				}()
				s, err := b.Stream(t.Context(), name, nil)
				if err != nil {
					t.Fatal(err)
				}
				defer s.Close() //nolint:errcheck // so does the broker
				caps[i] = s.Capabilities()
			}
			if refused(errs[0]) != refused(errs[1]) {
				t.Fatalf("declaring: the profile says %v, the broker %v", errs[0], errs[1])
			}
			compare(t, caps[0], caps[1])
		})
	}
}
