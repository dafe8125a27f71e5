package rabbitmq

import (
	"hash/fnv"
	"math/rand/v2"
	"strconv"
	"strings"

	"github.com/queuestream/broker"
)

// A group's slot is a hash; slots are spread over the shards of an ordered
// queue. Slots, not shards, travel in a header, since exchanges do not know how
// many shards a bound queue has.
const slots = 64

// defaultShards is QueueConfig.Shards where it is 0.
const defaultShards = 8

// slotOf returns the slot of a group, or a random one for messages without.
func slotOf(group string) int {
	if group == "" {
		return rand.IntN(slots)
	}
	h := fnv.New64a()
	_, _ = h.Write([]byte(group)) // never fails
	return int(h.Sum64() % slots) //nolint:gosec // below slots
}

// shardName returns the name of a shard's queue in the broker.
func shardName(queue string, i int) string { return shardExchange(queue) + "." + strconv.Itoa(i) }

// shardExchange returns the name of the headers exchange that routes to shards
// by slot what other exchanges send to the queue.
func shardExchange(queue string) string { return queue + ".shards" }

// unshard returns the name that programs know a queue by.
func unshard(name string) string {
	i := strings.LastIndex(name, ".shards.")
	if i <= 0 {
		return name
	}
	if _, err := strconv.Atoi(name[i+len(".shards."):]); err != nil {
		return name
	}
	return name[:i]
}

// A queueInfo is what is known about a queue.
type queueInfo struct {
	name        string
	shards      int // 0: a plain queue
	classic     bool
	transient   bool // does not survive a restart
	bounded     bool
	maxPriority int
	maxAttempts int
	deadLetter  string
}

// queues returns the names in the broker.
func (i *queueInfo) queues() []string {
	if i.shards == 0 {
		return []string{i.name}
	}
	names := make([]string, i.shards)
	for n := range names {
		names[n] = shardName(i.name, n)
	}
	return names
}

// route returns the name in the broker of the queue that stores m.
func (i *queueInfo) route(m *broker.Message) string {
	if i.shards == 0 {
		return i.name
	}
	return shardName(i.name, slotOf(m.GroupID)%i.shards)
}
