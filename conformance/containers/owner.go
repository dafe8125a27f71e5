package containers

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"

	"github.com/moby/moby/client"
)

// Labels of the containers of this package.
const (
	labelBroker  = "queuestream.broker"  // the Kind
	labelVersion = "queuestream.version" // the broker's version
	labelMode    = "queuestream.mode"    // modeRun or modeUp
	labelRun     = "queuestream.run"     // the run: a runner and all processes below it
	labelProcess = "queuestream.process" // the process that started the container
	labelLock    = "queuestream.lock"    // the file that this process holds locked while it lives
	labelHost    = "queuestream.host"    // the host that the file is on
	labelUp      = "queuestream.up"      // the checkout that "up" was called in

	modeRun = "run" // gone with the process that started it
	modeUp  = "up"  // stays until "down"
)

// owner is this process as the owner of containers. Three things see to it that
// no container outlives it: those who start one remove it; the reaper, a small
// process of its own, removes what is left once its pipe to this process closes,
// however this process ends; and whoever starts brokers next sweeps up after
// processes whose lock file is no longer locked.
type owner struct {
	run, process string
	lock         *os.File // held locked until the process ends
	pipe         *os.File // closes with the process
	seq          atomic.Int64
}

// currentOwner returns the owner that stands for this process. The first call
// takes the lock, starts the reaper and sweeps up.
var currentOwner = sync.OnceValues(newOwner)

func newOwner() (*owner, error) {
	id := strings.ToLower(rand.Text()[:12])
	o := &owner{run: os.Getenv(envRun), process: id}
	if o.run == "" {
		o.run = id
	}
	dir := filepath.Join(os.TempDir(), fmt.Sprintf("queuestream-brokers-%d", os.Getuid()))
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	lock, err := os.OpenFile(filepath.Join(dir, id+".lock"), os.O_CREATE|os.O_RDWR, 0o600) //nolint:gosec // the name is made here
	if err != nil {
		return nil, err
	}
	if err := lockFile(lock); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("lock %s: %w", lock.Name(), err)
	}
	o.lock = lock
	o.startReaper()
	return o, nil
}

// labels returns the labels of a container that goes when this process does.
func (o *owner) labels() map[string]string {
	host, _ := os.Hostname()
	return map[string]string{
		labelMode:    modeRun,
		labelRun:     o.run,
		labelProcess: o.process,
		labelLock:    o.lock.Name(),
		labelHost:    host,
	}
}

// reaperScript waits for the end of its input, which is the end of the process
// that started it, and removes that process's containers. It looks more than
// once, for one that the engine was still creating.
const reaperScript = `trap '' HUP INT TERM
cat >/dev/null
for pause in 0 1 2; do
	sleep $pause
	ids=$(docker ps -aq --filter "label=$1") && [ -n "$ids" ] && docker rm -fv $ids
done
rm -f "$2"`

// startReaper starts the reaper. Without a shell or a docker client there is
// none, and leftovers of a killed process wait for the next sweep.
func (o *owner) startReaper() {
	if _, err := exec.LookPath("docker"); err != nil {
		return
	}
	r, w, err := os.Pipe()
	if err != nil {
		return
	}
	defer func() { _ = r.Close() }()
	// No context: the reaper outlives this process by design.
	cmd := exec.Command("sh", "-c", reaperScript, "reaper", labelProcess+"="+o.process, o.lock.Name()) //nolint:gosec,noctx // fixed script, own values
	cmd.Stdin = r
	detach(cmd)
	if err := cmd.Start(); err != nil {
		_ = w.Close()
		return
	}
	_ = cmd.Process.Release()
	o.pipe = w
}

// Sweep removes the containers of processes that ended without removing them,
// and returns how many. Containers of live processes, of other hosts and those
// of Up are left alone.
func Sweep(ctx context.Context) (int, error) {
	e, err := openEngine(ctx)
	if err != nil {
		return 0, wrap("sweep", "", err)
	}
	defer e.close()
	n, err := e.sweep(ctx)
	return n, wrap("sweep", "", err)
}

func (e *engine) sweep(ctx context.Context) (int, error) {
	list, err := e.api.ContainerList(ctx, client.ContainerListOptions{
		All:     true,
		Filters: make(client.Filters).Add("label", labelMode+"="+modeRun),
	})
	if err != nil {
		return 0, err
	}
	host, _ := os.Hostname()
	n := 0
	var errs []error
	for _, c := range list.Items {
		if c.Labels[labelHost] != host || !ownerDead(c.Labels[labelLock]) {
			continue
		}
		n++
		errs = append(errs, e.remove(ctx, c.ID))
	}
	return n, errors.Join(errs...)
}

// ownerDead reports whether the process that holds the lock file is gone.
func ownerDead(path string) bool {
	if path == "" {
		return false
	}
	f, err := os.OpenFile(path, os.O_RDWR, 0) //nolint:gosec // the path is from our own label
	if err != nil {
		return errors.Is(err, os.ErrNotExist)
	}
	defer func() { _ = f.Close() }()
	return lockFile(f) == nil
}
