package rabbitmq

import (
	"hash/fnv"
	"maps"
	"strconv"
	"strings"

	amqp "github.com/rabbitmq/amqp091-go"

	"github.com/queuestream/broker"
)

// A group's slot is a hash; slots are spread over the shards of an ordered
// queue. Slots, not shards, travel in a header, since exchanges do not know how
// many shards a bound queue has.
const slots = 64

// defaultShards is QueueConfig.Shards where it is 0.
const defaultShards = 8

// slotOf returns the slot of a group.
func slotOf(group string) int {
	h := fnv.New64a()
	_, _ = h.Write([]byte(group)) // never fails
	return int(h.Sum64() % slots) //nolint:gosec // below slots
}

// noSlot stands in the header for a message without a group.
const noSlot = "none"

// slotHeader returns what the header of a message of the group says.
func slotHeader(group string) string {
	if group == "" {
		return noSlot
	}
	return strconv.Itoa(slotOf(group))
}

// shardName returns the name of a shard's queue in the broker.
func shardName(queue string, i int) string { return shardExchange(queue) + "." + strconv.Itoa(i) }

// looseName returns the name in the broker of an ordered queue's messages
// without a group. That queue has no single active consumer: they are shared
// among all.
func looseName(queue string) string { return shardExchange(queue) + ".none" }

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
	direct      bool // a caller's direct reply-to: not a queue
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
	names := make([]string, i.shards, i.shards+1)
	for n := range names {
		names[n] = shardName(i.name, n)
	}
	return append(names, looseName(i.name))
}

// arguments returns args as they are of one of its queues in the broker.
func (i *queueInfo) arguments(queue string, args amqp.Table) amqp.Table {
	if i.shards == 0 || queue != looseName(i.name) {
		return args
	}
	args = maps.Clone(args)
	delete(args, amqp.SingleActiveConsumerArg)
	return args
}

// route returns the name in the broker of the queue that stores m.
func (i *queueInfo) route(m *broker.Message) string {
	if i.shards == 0 {
		return i.name
	}
	if m.GroupID == "" {
		return looseName(i.name)
	}
	return shardName(i.name, slotOf(m.GroupID)%i.shards)
}
