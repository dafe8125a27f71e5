// Package blob stores bodies that are too large for a queue: the bridge puts
// them here and sends a pointer (the claim-check pattern), the consumer's side
// fetches them. A [Dir] keeps them in a directory, package blob/s3 in a bucket.
package blob

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"
)

// ErrNotFound is what Get returns for a key that is not there.
var ErrNotFound = errors.New("blob not found")

// A Store keeps bodies under keys of letters, digits, "-", "_", "." and "/".
// It is safe for concurrent use.
type Store interface {
	// Put stores body under key and returns once it is durable. A key that is
	// there already is replaced: the bridge puts the same body again after a
	// crash.
	Put(ctx context.Context, key string, body []byte) error
	// Get returns the body, or an error that wraps ErrNotFound.
	Get(ctx context.Context, key string) ([]byte, error)
	// Delete removes the body; a missing one is no error.
	Delete(ctx context.Context, key string) error
}

// A Dir is a Store in a directory, which is made when needed.
type Dir struct{ Path string }

var _ Store = Dir{}

// Put writes a temporary file, syncs it, renames it, and syncs the directories
// that lead to it.
func (d Dir) Put(ctx context.Context, key string, body []byte) (err error) {
	name, err := d.name(ctx, key)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(name), 0o750); err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(name), ".put-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(body)
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return d.syncPath(name)
}

// syncPath makes the names of a file and of the directories that lead to it
// durable.
func (d Dir) syncPath(name string) error {
	for dir, root := filepath.Dir(name), filepath.Clean(d.Path); ; dir = filepath.Dir(dir) {
		if err := syncDir(dir); err != nil || dir == root {
			return err
		}
	}
}

// syncDir makes the names in a directory durable, where one has to ask for it.
func syncDir(name string) error {
	if runtime.GOOS == "windows" {
		return nil
	}
	d, err := os.Open(name) //nolint:gosec // a directory of the store
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Get reads the file.
func (d Dir) Get(ctx context.Context, key string) ([]byte, error) {
	name, err := d.name(ctx, key)
	if err != nil {
		return nil, err
	}
	f, err := os.Open(name) //nolint:gosec // name was checked to lie inside the directory
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotFound, key)
	} else if err != nil {
		return nil, err
	}
	b, err := io.ReadAll(f)
	return b, errors.Join(err, f.Close())
}

// Delete removes the file.
func (d Dir) Delete(ctx context.Context, key string) error {
	name, err := d.name(ctx, key)
	if err != nil {
		return err
	}
	if err := os.Remove(name); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

func (d Dir) name(ctx context.Context, key string) (string, error) {
	if err := ctx.Err(); err != nil {
		return "", err
	}
	if !filepath.IsLocal(key) || strings.ContainsAny(key, "\\\x00") {
		return "", fmt.Errorf("blob key %q: want a relative path inside the store", key)
	}
	return filepath.Join(d.Path, filepath.FromSlash(key)), nil
}
