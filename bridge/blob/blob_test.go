package blob

import (
	"bytes"
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
)

func TestDir(t *testing.T) {
	t.Chdir(t.TempDir())
	for _, path := range []string{filepath.Join(t.TempDir(), "made", "when", "needed"), "relative", "a/../b", ""} {
		d, ctx := Dir{Path: path}, t.Context()
		for _, key := range []string{"key", "orders/3/42-abc"} {
			if _, err := d.Get(ctx, key); !errors.Is(err, ErrNotFound) {
				t.Errorf("%q: get before put: %v", path, err)
			}
			for _, body := range [][]byte{[]byte("first"), {}, bytes.Repeat([]byte{0, 0xff}, 1<<20)} {
				if err := d.Put(ctx, key, body); err != nil {
					t.Fatalf("%q: %v", path, err)
				}
				if got, err := d.Get(ctx, key); err != nil || !bytes.Equal(got, body) {
					t.Errorf("%q: got %d bytes, %v; put %d", path, len(got), err, len(body))
				}
			}
			if left, err := filepath.Glob(filepath.Join(path, filepath.Dir(key), ".put-*")); err != nil || len(left) > 0 {
				t.Errorf("%q: left behind: %v, %v", path, left, err)
			}
			for range 2 {
				if err := d.Delete(ctx, key); err != nil {
					t.Errorf("%q: delete: %v", path, err)
				}
			}
		}
	}
}

func TestDirRefuses(t *testing.T) {
	d := Dir{Path: t.TempDir()}
	for _, key := range []string{"", "../up", "/root", "a/../../b", "a\\b", "a\x00b"} {
		if err := d.Put(t.Context(), key, nil); err == nil {
			t.Errorf("put %q", key)
		}
	}
	ended, cancel := context.WithCancel(t.Context())
	cancel()
	if err := d.Put(ended, "key", nil); !errors.Is(err, context.Canceled) {
		t.Errorf("put with an ended context: %v", err)
	}
	if err := os.WriteFile(filepath.Join(d.Path, "file"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := d.Put(t.Context(), "file/key", nil); err == nil {
		t.Error("put under a file")
	}
}
