package containers

import (
	"context"
	"net"
	"strconv"
	"time"
)

// addrs are the host:port under which a broker's ports are reached, by the
// port's role.
type addrs map[role]string

// role is what a port is for.
type role string

const (
	roleClient     role = "client"
	roleStream     role = "stream"     // RabbitMQ's stream protocol
	roleManagement role = "management" // RabbitMQ's HTTP API
)

// port is a port of a container.
type port struct {
	role   role
	number uint16
}

// file is a file laid into a container before it starts.
type file struct {
	path string
	body []byte
	mode int64
}

// spec is how a broker's container is made. It fits the official image and the
// one built locally alike.
type spec struct {
	kind       Kind
	ports      []port
	hostname   string                             // fixed where data belong to a name
	entrypoint []string                           // nil: the image's own
	cmd        []string                           // nil: the image's own
	env        func(at addrs) map[string]string   // may be nil
	files      func(at addrs) []file              // may be nil
	ready      func(context.Context, addrs) error // nil error: the broker serves
	grace      time.Duration                      // what a graceful stop may take
}

// config returns an embedded configuration file as a file of the container.
func config(name, path string) file {
	return file{path: path, body: mustRead(configs, "config/"+name), mode: 0o644}
}

// specOf returns the spec of a kind as it is started for everybody.
func specOf(k Kind) spec {
	switch k {
	case KindKafka:
		return kafkaSpec(KafkaOptions{})
	case KindRabbitMQ:
		return rabbitMQSpec()
	case KindSQS:
		return sqsSpec()
	default:
		return snsSpec()
	}
}

// hostPort splits an address; ok is false when it is none.
func hostPort(addr string) (host string, port int, ok bool) {
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		return "", 0, false
	}
	n, err := strconv.Atoi(p)
	return host, n, err == nil
}
