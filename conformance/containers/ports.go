package containers

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
)

// Ports of brokers are chosen before their containers start, and not by the
// engine, for two reasons: a broker that tells its clients where to connect
// (Kafka, RabbitMQ's streams) must know them, and the engine would choose
// others at every restart. They lie below the ranges from which systems take
// the ports of outgoing connections, so that a broker that is down does not
// lose its port to one.
const (
	firstPort = 20000
	lastPort  = 29999
)

// freePorts returns n different ports that nothing on this host listens on.
// Somebody else may take one before a container does: start tries again then.
func freePorts(ctx context.Context, n int) ([]int, error) {
	ports := make([]int, 0, n)
	held := make([]net.Listener, 0, n)
	defer func() {
		for _, l := range held {
			_ = l.Close()
		}
	}()
	for range 1000 {
		p := firstPort + rand.IntN(lastPort-firstPort+1) //nolint:gosec // a port is no secret
		l, err := (&net.ListenConfig{}).Listen(ctx, "tcp", net.JoinHostPort(loopback, strconv.Itoa(p)))
		if err != nil {
			continue
		}
		held = append(held, l)
		if ports = append(ports, p); len(ports) == n {
			return ports, nil
		}
	}
	return nil, fmt.Errorf("no %d free ports between %d and %d", n, firstPort, lastPort)
}
