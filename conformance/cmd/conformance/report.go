package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/queuestream/broker/conformance"
)

// create makes the file that the report goes to; nil: none is wanted.
func create(path string) (*os.File, error) {
	if path == "" {
		return nil, nil
	}
	return os.Create(path) //nolint:gosec // the user names it
}

// write tells how each case ended, and leaves the report in file.
func write(r *conformance.Report, out io.Writer, file *os.File) (err error) {
	if file != nil {
		defer func() { err = errors.Join(err, file.Close()) }()
		if err := r.WriteJSON(file); err != nil {
			return err
		}
	}
	for i := range r.Results {
		x := &r.Results[i]
		line := fmt.Sprintf("%-8s %-6s %2d %s", x.Status, x.Kind, x.ID, x.Name)
		if x.Reason != "" {
			line += ": " + x.Reason
		}
		for _, f := range x.Failures {
			line += "\n         " + strings.ReplaceAll(f, "\n", "\n         ")
		}
		if _, err := fmt.Fprintln(out, line); err != nil {
			return err
		}
	}
	_, err = fmt.Fprintln(out, r.Summary())
	return err
}
