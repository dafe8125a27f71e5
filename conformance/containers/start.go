package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"maps"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
)

const (
	// startTimeout bounds a start, with the wait for the broker to serve,
	// when the caller's context has no deadline.
	startTimeout = 3 * time.Minute
	// portAttempts bounds the starts with other ports after somebody took one.
	portAttempts = 10
)

// start creates and starts a container of the spec and waits until the broker
// serves. Labels say whose it is.
func start(ctx context.Context, s spec, name string, labels map[string]string) (*Instance, error) {
	ctx, cancel := withDefaultTimeout(ctx, startTimeout)
	defer cancel()
	e, err := openEngine(ctx)
	if err != nil {
		return nil, wrap("start", s.kind, err)
	}
	defer e.close()
	if _, err := e.sweep(ctx); err != nil {
		return nil, wrap("sweep", "", err)
	}
	image, err := e.image(ctx, s.kind)
	if err != nil {
		return nil, wrap("start", s.kind, err)
	}
	for attempt := 1; ; attempt++ {
		in, err := e.create(ctx, s, name, image, labels)
		if err == nil {
			err = in.start(ctx, e)
		}
		switch {
		case err == nil:
			return in, nil
		case in != nil:
			// The container is useless; its removal must not be stopped by
			// a context that has just ended.
			err = errors.Join(err, e.remove(context.WithoutCancel(ctx), in.container))
		}
		if attempt == portAttempts || !portTaken(err) {
			return nil, wrap("start", s.kind, err)
		}
	}
}

// portTaken reports whether a start failed because a port was not free any
// more. The engine has no error code for it.
func portTaken(err error) bool {
	msg := err.Error()
	return strings.Contains(msg, "port is already allocated") || strings.Contains(msg, "address already in use")
}

// create makes the container, with its files and labels, and does not start it.
func (e *engine) create(ctx context.Context, s spec, name, image string, labels map[string]string) (*Instance, error) {
	host, err := e.host(ctx)
	if err != nil {
		return nil, err
	}
	free, err := freePorts(ctx, len(s.ports))
	if err != nil {
		return nil, err
	}
	// On a remote engine the ports are published on every address it has.
	bindTo := netip.IPv4Unspecified()
	if host == loopback {
		bindTo = netip.AddrFrom4([4]byte{127, 0, 0, 1})
	}
	at := make(addrs, len(s.ports))
	exposed := make([]string, len(s.ports))
	bindings := make(network.PortMap, len(s.ports))
	for i, p := range s.ports {
		at[p.role] = net.JoinHostPort(host, strconv.Itoa(free[i]))
		inside, _ := network.PortFrom(p.number, network.TCP)
		exposed[i] = inside.String()
		bindings[inside] = []network.PortBinding{{HostIP: bindTo, HostPort: strconv.Itoa(free[i])}}
	}
	version := s.kind.Version()
	if image != s.kind.LocalImage() && image != s.kind.OfficialImage() {
		version = image
	}
	all := map[string]string{labelBroker: string(s.kind), labelVersion: version}
	maps.Copy(all, labels)
	req := testcontainers.ContainerRequest{
		Image:        image,
		Name:         name,
		Labels:       all,
		ExposedPorts: exposed,
		Entrypoint:   s.entrypoint,
		Cmd:          s.cmd,
		ConfigModifier: func(c *container.Config) {
			c.Hostname = s.hostname
			grace := int(s.grace.Seconds())
			c.StopTimeout = &grace
		},
		HostConfigModifier: func(c *container.HostConfig) { c.PortBindings = bindings },
	}
	if s.env != nil {
		req.Env = s.env(at)
	}
	if s.files != nil {
		for _, f := range s.files(at) {
			req.Files = append(req.Files, testcontainers.ContainerFile{
				Reader: bytes.NewReader(f.body), ContainerFilePath: f.path, FileMode: f.mode,
			})
		}
	}
	c, err := e.provider.CreateContainer(ctx, req)
	if err != nil {
		if c != nil {
			err = errors.Join(err, e.remove(context.WithoutCancel(ctx), c.GetContainerID()))
		}
		return nil, err
	}
	return &Instance{kind: s.kind, version: version, image: image, container: c.GetContainerID(), at: at, serves: s.ready}, nil
}

// private starts a broker for one test, owned by this process.
func private(ctx context.Context, s spec) (*Instance, error) {
	o, err := currentOwner()
	if err != nil {
		return nil, wrap("start", s.kind, err)
	}
	in, err := start(ctx, s, o.name(s.kind), o.labels())
	if err != nil {
		return nil, err
	}
	in.private = true
	return in, nil
}

// name returns a name for a new container of this process.
func (o *owner) name(k Kind) string {
	return fmt.Sprintf("queuestream-%s-%s-%d", k, o.process, o.seq.Add(1))
}

// withDefaultTimeout returns ctx with the timeout unless it has a deadline.
func withDefaultTimeout(ctx context.Context, d time.Duration) (context.Context, context.CancelFunc) {
	if _, ok := ctx.Deadline(); ok {
		return context.WithCancel(ctx)
	}
	return context.WithTimeout(ctx, d)
}
