package containers

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/client"
)

// pullTimeout bounds the attempt to pull an image: on a host without a way to
// a registry it must not be what a run waits for.
const pullTimeout = 5 * time.Minute

// inCI reports whether this is a continuous integration run, in which no image
// is pulled and a missing broker is a failure.
func inCI() bool { return os.Getenv("CI") == "true" }

// Prepare sees to it that the engine has an image of each kind: one that is
// present, one that is pulled (never in CI), or one that is built as opts say.
// Starting a broker does the same, but installs nothing on the host and has
// little time for it. Without an engine the error is ErrUnavailable.
func Prepare(ctx context.Context, kinds []Kind, opts BuildOptions) error {
	if len(kinds) == 0 {
		return nil
	}
	e, err := openEngine(ctx)
	if err != nil {
		return wrap("prepare images", "", err)
	}
	defer e.close()
	var build []Kind
	for _, kind := range kinds {
		_, pullErr, err := e.find(ctx, kind)
		switch {
		case err != nil:
			return wrap("prepare images", kind, err)
		case pullErr != nil:
			build = append(build, kind)
		}
	}
	return BuildImages(ctx, build, opts)
}

// image returns the name of an image of the kind that is present on the
// engine, at last one that is built now.
func (e *engine) image(ctx context.Context, kind Kind) (string, error) {
	name, pullErr, err := e.find(ctx, kind)
	if err != nil || pullErr == nil {
		return name, err
	}
	if err := BuildImages(ctx, []Kind{kind}, BuildOptions{NoInstall: true}); err != nil {
		return "", fmt.Errorf("%w: no image of it (pull: %w; build: %w)", ErrUnavailable, pullErr, err)
	}
	return name, nil
}

// find returns the name of an image of the kind. In this order: the one that
// BROKER_TEST_<KIND>_IMAGE names and nothing else, the one built locally, the
// official one, the official one pulled (never in CI). With a pullErr it is the
// one to build.
func (e *engine) find(ctx context.Context, kind Kind) (name string, pullErr, err error) {
	if name := os.Getenv(kind.Env() + envImage); name != "" {
		have, err := e.haveImage(ctx, name)
		if err != nil || have {
			return name, nil, err
		}
		if err := e.pull(ctx, name); err != nil {
			return "", nil, fmt.Errorf("%w: image %s of %s: %w", ErrUnavailable, name, kind.Env()+envImage, err)
		}
		return name, nil, nil
	}
	for _, name := range []string{kind.LocalImage(), kind.OfficialImage()} {
		have, err := e.haveImage(ctx, name)
		if err != nil || have {
			return name, nil, err
		}
	}
	if err := e.pull(ctx, kind.OfficialImage()); err != nil {
		return kind.LocalImage(), err, nil
	}
	return kind.OfficialImage(), nil, nil
}

func (e *engine) haveImage(ctx context.Context, name string) (bool, error) {
	_, err := e.api.ImageInspect(ctx, name)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	return err == nil, err
}

var errPullInCI = errors.New("no image is pulled with CI=true")

func (e *engine) pull(ctx context.Context, name string) error {
	if inCI() {
		return errPullInCI
	}
	ctx, cancel := context.WithTimeout(ctx, pullTimeout)
	defer cancel()
	r, err := e.api.ImagePull(ctx, name, client.ImagePullOptions{})
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	return r.Wait(ctx)
}

// BuildOptions says how BuildImages works. The zero value is right for a tool
// that a person started; NoInstall is for a library call.
type BuildOptions struct {
	// Force builds images that exist again.
	Force bool
	// NoInstall forbids the installation of missing build tools on the host.
	NoInstall bool
	// Log receives what the build says. Default: it is kept for the error.
	Log func(line string)
}

// BuildImages builds the local images of the kinds from images/, leaving alone
// those that exist. It needs bash and the docker client on the host, and for a
// base image either Debian's or root with debootstrap; Maven fetches the jars.
func BuildImages(ctx context.Context, kinds []Kind, opts BuildOptions) error {
	if len(kinds) == 0 {
		return nil
	}
	dir, err := os.MkdirTemp("", "queuestream-images-")
	if err != nil {
		return wrap("build images", "", err)
	}
	defer func() { _ = os.RemoveAll(dir) }()
	src, err := fs.Sub(images, "images")
	if err != nil {
		return wrap("build images", "", err)
	}
	if err := os.CopyFS(dir, src); err != nil {
		return wrap("build images", "", err)
	}
	args := []string{filepath.Join(dir, "build.sh")}
	for _, k := range kinds {
		args = append(args, k.imageName())
	}
	var out bytes.Buffer
	cmd := exec.CommandContext(ctx, "bash", args...) //nolint:gosec // our own script, names from a fixed list
	cmd.Env = os.Environ()
	if opts.Force {
		cmd.Env = append(cmd.Env, "FORCE=1")
	}
	if opts.NoInstall {
		cmd.Env = append(cmd.Env, "NO_INSTALL=1")
	}
	w := &lineWriter{line: opts.Log, all: &out}
	cmd.Stdout, cmd.Stderr = w, w
	if err := cmd.Run(); err != nil {
		return wrap("build images", "", fmt.Errorf("%w\n%s", err, strings.TrimSpace(out.String())))
	}
	return nil
}

// lineWriter passes whole lines on and keeps everything.
type lineWriter struct {
	line func(string)
	all  *bytes.Buffer
	part []byte
}

func (w *lineWriter) Write(p []byte) (int, error) {
	w.all.Write(p)
	if w.line == nil {
		return len(p), nil
	}
	w.part = append(w.part, p...)
	for {
		i := bytes.IndexByte(w.part, '\n')
		if i < 0 {
			return len(p), nil
		}
		w.line(string(w.part[:i]))
		w.part = w.part[i+1:]
	}
}
