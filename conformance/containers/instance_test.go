package containers

import (
	"context"
	"errors"
	"testing"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/client"
)

// refuser is an engine that fails to pause its container some times.
type refuser struct {
	client.APIClient
	refuse, tries int
	state         container.ContainerState
}

var errFreeze = errors.New("OCI runtime pause failed: unable to freeze: unknown")

func (r *refuser) ContainerPause(context.Context, string, client.ContainerPauseOptions) (client.ContainerPauseResult, error) {
	if r.tries++; r.tries <= r.refuse {
		return client.ContainerPauseResult{}, errFreeze
	}
	return client.ContainerPauseResult{}, nil
}

func (r *refuser) ContainerInspect(context.Context, string, client.ContainerInspectOptions) (client.ContainerInspectResult, error) {
	return client.ContainerInspectResult{Container: container.InspectResponse{State: &container.State{Status: r.state}}}, nil
}

// A container that cannot be frozen at the moment is frozen a moment later.
func TestFreezeTriesAgain(t *testing.T) {
	for _, c := range []struct {
		name   string
		engine *refuser
		tries  int
		err    error
	}{
		{"at once", &refuser{state: "running"}, 1, nil},
		{"the third time", &refuser{refuse: 2, state: "running"}, 3, nil},
		{"it is frozen already", &refuser{refuse: 1, state: "paused"}, 1, nil},
		{"it has ended", &refuser{refuse: 1, state: "exited"}, 1, errFreeze},
		{"never", &refuser{refuse: 2 * freezeTries, state: "running"}, freezeTries, errFreeze},
	} {
		t.Run(c.name, func(t *testing.T) {
			t.Parallel()
			in := &Instance{container: "c"}
			if err := in.freeze(t.Context(), &engine{api: c.engine}); !errors.Is(err, c.err) {
				t.Errorf("error %v, want %v", err, c.err)
			}
			if c.engine.tries != c.tries {
				t.Errorf("%d tries, want %d", c.engine.tries, c.tries)
			}
		})
	}
}
