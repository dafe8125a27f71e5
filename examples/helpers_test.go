package examples_test

import (
	"io"
	"log/slog"
)

// quiet keeps the SDK's log out of the examples' output.
var quiet = slog.New(slog.NewTextHandler(io.Discard, nil))

// must ends an example that cannot go on.
func must(err error) {
	if err != nil {
		panic(err)
	}
}
