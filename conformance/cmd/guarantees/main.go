// Command guarantees writes the guarantee matrix, in Markdown, of one or more
// reports of the conformance suite, and a line on each to standard error:
//
//	go run ./conformance/cmd/guarantees report.json… > docs/guarantees.md
package main

import (
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/queuestream/broker/conformance"
)

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "guarantees:", err)
		os.Exit(1)
	}
}

func run(paths []string, out, summary io.Writer) error {
	if len(paths) == 0 {
		return errors.New("no report: usage: guarantees report.json… > docs/guarantees.md")
	}
	var reports []*conformance.Report
	for _, path := range paths {
		r, err := read(path)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		reports = append(reports, r)
		if _, err := fmt.Fprintln(summary, r.Summary()); err != nil {
			return err
		}
	}
	return conformance.WriteGuarantees(out, reports...)
}

func read(path string) (r *conformance.Report, err error) {
	f, err := os.Open(path) //nolint:gosec // the user names it
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return conformance.ReadReport(f)
}
