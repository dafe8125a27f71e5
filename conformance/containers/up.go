package containers

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"

	"github.com/moby/moby/client"
)

// Up sees to it that the brokers of the kinds run for a developer's day: those
// that an earlier Up of the same place started are found again, started when
// they are down, and the others are created. place is usually the checkout's
// directory; two places have brokers of their own. They stay until Down.
func Up(ctx context.Context, place string, kinds []Kind) ([]*Instance, error) {
	o, err := currentOwner()
	if err != nil {
		return nil, wrap("up", "", err)
	}
	found, err := Found(ctx, place)
	if err != nil {
		return nil, err
	}
	var (
		wg        sync.WaitGroup
		instances = make([]*Instance, len(kinds))
		errs      = make([]error, len(kinds))
	)
	for i, kind := range kinds {
		wg.Go(func() {
			for _, in := range found {
				if in.kind == kind {
					instances[i], errs[i] = in, in.revive(ctx)
					return
				}
			}
			labels := map[string]string{labelMode: modeUp, labelUp: place}
			instances[i], errs[i] = start(ctx, specOf(kind), o.name(kind)+"-up", labels)
		})
	}
	wg.Wait()
	return instances, errors.Join(errs...)
}

// Down removes the brokers that Up started for the place, with their data, and
// returns how many there were.
func Down(ctx context.Context, place string) (int, error) {
	e, err := openEngine(ctx)
	if err != nil {
		return 0, wrap("down", "", err)
	}
	defer e.close()
	n, err := e.removeLabelled(ctx, labelUp, place)
	return n, wrap("down", "", err)
}

// Found returns the brokers that Up started for the place, running or not.
func Found(ctx context.Context, place string) ([]*Instance, error) {
	e, err := openEngine(ctx)
	if err != nil {
		return nil, wrap("find", "", err)
	}
	defer e.close()
	host, err := e.host(ctx)
	if err != nil {
		return nil, wrap("find", "", err)
	}
	list, err := e.api.ContainerList(ctx, client.ContainerListOptions{
		All:     true,
		Filters: make(client.Filters).Add("label", labelUp+"="+place),
	})
	if err != nil {
		return nil, wrap("find", "", err)
	}
	var found []*Instance
	for _, kind := range Kinds() {
		for _, c := range list.Items {
			if c.Labels[labelBroker] != string(kind) {
				continue
			}
			in, err := e.adopt(ctx, c.ID, kind, host)
			if err != nil {
				return nil, wrap("find", kind, err)
			}
			in.version, in.image = c.Labels[labelVersion], c.Image
			found = append(found, in)
			break
		}
	}
	return found, nil
}

// revive starts a container that is down, resumes a paused one, and waits until
// the broker serves.
func (in *Instance) revive(ctx context.Context) error {
	return in.control(ctx, "up", func(ctx context.Context, e *engine) error {
		if err := in.unpause(ctx, e); err != nil {
			return err
		}
		return in.start(ctx, e)
	})
}

// adopt makes an instance of a container that another process created.
func (e *engine) adopt(ctx context.Context, id string, kind Kind, host string) (*Instance, error) {
	r, err := e.api.ContainerInspect(ctx, id, client.ContainerInspectOptions{})
	if err != nil {
		return nil, err
	}
	s := specOf(kind)
	in := &Instance{kind: kind, container: id, at: make(addrs), serves: s.ready}
	for inside, bindings := range r.Container.HostConfig.PortBindings {
		for _, p := range s.ports {
			if p.number == inside.Num() && len(bindings) > 0 {
				in.at[p.role] = net.JoinHostPort(host, bindings[0].HostPort)
			}
		}
	}
	if len(in.at) != len(s.ports) {
		return nil, fmt.Errorf("container %s publishes other ports than %s needs", strings.TrimPrefix(r.Container.Name, "/"), kind.Product())
	}
	return in, nil
}
