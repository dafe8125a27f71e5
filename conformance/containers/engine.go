package containers

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
	"github.com/testcontainers/testcontainers-go"
	"github.com/testcontainers/testcontainers-go/log"
)

// engine is a connection to the container engine, as testcontainers-go finds
// it (DOCKER_HOST, the usual sockets, ~/.testcontainers.properties). Connections
// are opened for one operation and closed after it, so that a test process that
// looks for leaked goroutines finds none of ours.
type engine struct {
	provider *testcontainers.DockerProvider
	api      client.APIClient
}

// quiet makes testcontainers-go fit in: no banner on every connection, and no
// Ryuk container. What Ryuk does, the labels, the lock files and the reaper of
// this package do without an image of its own (see owner).
var quiet = sync.OnceFunc(func() {
	if _, set := os.LookupEnv("TESTCONTAINERS_RYUK_DISABLED"); !set {
		_ = os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true") // fails only for invalid names
	}
	log.SetDefault(log.NewNoopLogger())
})

// openEngine connects to the engine. It fails with ErrUnavailable when none answers.
func openEngine(ctx context.Context) (*engine, error) {
	quiet()
	provider, err := testcontainers.NewDockerProvider(testcontainers.Generic2DockerOptions(
		testcontainers.WithLogger(log.NewNoopLogger()))...)
	if err != nil {
		return nil, fmt.Errorf("%w: no container engine: %w", ErrUnavailable, err)
	}
	e := &engine{provider: provider, api: provider.Client()}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if _, err := e.api.Ping(ctx, client.PingOptions{}); err != nil {
		e.close()
		return nil, fmt.Errorf("%w: no container engine: %w", ErrUnavailable, err)
	}
	return e, nil
}

// close gives the connections back. The engine is not used afterwards.
func (e *engine) close() { _ = e.provider.Close() }

// host returns the address at which published ports are reached. An engine
// behind a local socket publishes them on this machine; only when this process
// runs in a container, next to an engine outside of it, testcontainers-go has to
// find the way out.
func (e *engine) host(ctx context.Context) (string, error) {
	if h, ok := os.LookupEnv("TESTCONTAINERS_HOST_OVERRIDE"); ok {
		return h, nil
	}
	if local := e.api.DaemonHost(); strings.HasPrefix(local, "unix:") || strings.HasPrefix(local, "npipe:") {
		info, err := e.api.Info(ctx, client.InfoOptions{})
		if err != nil {
			return "", err
		}
		if name, err := os.Hostname(); err == nil && name == info.Info.Name {
			return loopback, nil
		}
	}
	h, err := e.provider.DaemonHost(ctx)
	if err != nil {
		return "", err
	}
	if h == "localhost" {
		// Ports are published on this address alone, and "localhost" may
		// be ::1 first.
		return loopback, nil
	}
	return h, nil
}

const loopback = "127.0.0.1"

// remove removes a container and its volumes. One that is gone already, or is
// being removed by somebody else, is fine.
func (e *engine) remove(ctx context.Context, id string) error {
	_, err := e.api.ContainerRemove(ctx, id, client.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
	if errdefs.IsNotFound(err) || errdefs.IsConflict(err) {
		return nil
	}
	return err
}

// removeLabelled removes all containers with the label and returns how many.
func (e *engine) removeLabelled(ctx context.Context, label, value string) (int, error) {
	list, err := e.api.ContainerList(ctx, client.ContainerListOptions{
		All:     true,
		Filters: make(client.Filters).Add("label", label+"="+value),
	})
	if err != nil {
		return 0, err
	}
	var errs []error
	for _, c := range list.Items {
		errs = append(errs, e.remove(ctx, c.ID))
	}
	return len(list.Items), errors.Join(errs...)
}

// readFile returns the content of a file of a container.
func (e *engine) readFile(ctx context.Context, id, path string) ([]byte, error) {
	r, err := e.api.CopyFromContainer(ctx, id, client.CopyFromContainerOptions{SourcePath: path})
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Content.Close() }()
	archive := tar.NewReader(r.Content)
	if _, err := archive.Next(); err != nil {
		return nil, err
	}
	return io.ReadAll(archive)
}

// EngineVersion returns the version of the container engine, or an error that
// wraps ErrUnavailable when there is none.
func EngineVersion(ctx context.Context) (string, error) {
	e, err := openEngine(ctx)
	if err != nil {
		return "", wrap("find", "", err)
	}
	defer e.close()
	v, err := e.api.ServerVersion(ctx, client.ServerVersionOptions{})
	if err != nil {
		return "", wrap("find", "", fmt.Errorf("%w: %w", ErrUnavailable, err))
	}
	return v.Version, nil
}
