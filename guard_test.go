package broker_test

import (
	"errors"
	"go/build"
	"io/fs"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

func deps(t *testing.T, patterns ...string) []string {
	t.Helper()
	args := append([]string{"list", "-deps"}, patterns...)
	cmd := exec.CommandContext(t.Context(), "go", args...) //nolint:gosec // fixed arguments
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go %s: %v", strings.Join(args, " "), err)
	}
	return strings.Fields(string(out))
}

// TestNothingForTestsIsShipped: what programs link has no package testing and
// no testcontainers.
func TestNothingForTestsIsShipped(t *testing.T) {
	for _, d := range deps(t, "./adapters/...", "./bridge/...", "./cmd/bridge/...", ".", "./codec/...") {
		if d == "testing" || strings.HasPrefix(d, "testing/") || strings.Contains(d, "testcontainers") ||
			strings.HasSuffix(d, "/conformance/containers") || strings.HasSuffix(d, "/brokertest") {
			t.Errorf("%s is linked into programs", d)
		}
	}
}

// TestRootImportsLittle: the root package needs the standard library, the rate
// limiter and what the module keeps to itself, alone.
func TestRootImportsLittle(t *testing.T) {
	for _, d := range deps(t, ".") {
		first, _, _ := strings.Cut(d, "/")
		if strings.Contains(first, ".") && d != "github.com/queuestream/broker" &&
			!strings.HasPrefix(d, "github.com/queuestream/broker/internal/") && !strings.HasPrefix(d, "golang.org/x/") {
			t.Errorf("the root package depends on %s", d)
		}
	}
}

// TestAdaptersStayApart: adapters know the root and no other adapter.
func TestAdaptersStayApart(t *testing.T) {
	const prefix = "github.com/queuestream/broker/adapters/"
	dirs, err := filepath.Glob("adapters/*")
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range dirs {
		if !hasGo(t, dir) {
			continue
		}
		for _, d := range deps(t, "./"+dir) {
			if strings.HasPrefix(d, prefix) && !strings.HasPrefix(d+"/", prefix+filepath.Base(dir)+"/") {
				t.Errorf("%s imports %s", dir, d)
			}
		}
	}
}

// TestPackagesHaveDocs: every package says what it is for.
func TestPackagesHaveDocs(t *testing.T) {
	err := filepath.WalkDir(".", func(dir string, e fs.DirEntry, err error) error {
		switch {
		case err != nil || !e.IsDir():
			return err
		case strings.HasPrefix(e.Name(), ".") && dir != ".", slices.Contains([]string{"testdata", "benchmarks"}, e.Name()):
			return fs.SkipDir
		case !hasGo(t, dir):
			return nil
		}
		p, err := build.ImportDir(dir, build.ImportComment)
		if _, none := errors.AsType[*build.NoGoError](err); none { // all of it behind build tags
			return nil
		}
		if err != nil {
			return err
		}
		if p.Doc == "" {
			t.Errorf("%s: package %s has no doc comment", dir, p.Name)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// hasGo tells whether dir holds Go files other than tests.
func hasGo(t *testing.T, dir string) bool {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil {
		t.Fatal(err)
	}
	return slices.ContainsFunc(files, func(f string) bool { return !strings.HasSuffix(f, "_test.go") })
}
