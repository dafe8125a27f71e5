package conformance

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/queuestream/broker"
)

// A Status is how a case ended.
type Status string

// How a case may end.
const (
	StatusPass     Status = "pass"     // the rule held
	StatusRefused  Status = "refused"  // the capability is not claimed and was refused, as it must be
	StatusFail     Status = "fail"     // the rule was broken
	StatusSkip     Status = "skip"     // not run; Reason says why
	StatusExpected Status = "expected" // failed, as Harness.Expected says with Reason
)

// A Report is the result of a run.
type Report struct {
	Name    string        `json:"name"`
	Version string        `json:"version,omitempty"`
	Seed    uint64        `json:"seed"`
	Started time.Time     `json:"started"`
	Elapsed time.Duration `json:"elapsed"` // ns
	// Queue and Stream are the capabilities that a handle declared with the
	// defaults claimed.
	Queue   *broker.QueueCapabilities  `json:"queue,omitempty"`
	Stream  *broker.StreamCapabilities `json:"stream,omitempty"`
	Results []Result                   `json:"results"`
}

// A Result is how one case ended for one kind.
type Result struct {
	ID       int               `json:"id"`
	Name     string            `json:"name"`
	Kind     string            `json:"kind"` // queue or stream
	Group    string            `json:"group"`
	Status   Status            `json:"status"`
	Reason   string            `json:"reason,omitempty"`   // of skip, refused and expected
	Failures []string          `json:"failures,omitempty"` // what was seen
	Notes    map[string]string `json:"notes,omitempty"`    // what was measured
	Elapsed  time.Duration     `json:"elapsed"`            // ns
}

// Count returns how many cases ended with the status.
func (r *Report) Count(s Status) int {
	n := 0
	for i := range r.Results {
		if r.Results[i].Status == s {
			n++
		}
	}
	return n
}

// Find returns the result of a case for Queue or Stream, or nil.
func (r *Report) Find(id int, kind Kind) *Result {
	for i := range r.Results {
		if r.Results[i].ID == id && r.Results[i].Kind == kind.String() {
			return &r.Results[i]
		}
	}
	return nil
}

// Failed tells whether a case failed.
func (r *Report) Failed() bool { return r.Count(StatusFail) > 0 }

// WriteJSON writes the report for ReadReport.
func (r *Report) WriteJSON(w io.Writer) error {
	e := json.NewEncoder(w)
	e.SetIndent("", "\t")
	if err := e.Encode(r); err != nil {
		return fmt.Errorf("conformance: write report: %w", err)
	}
	return nil
}

// reportsEnv names the directory that Run leaves its reports in.
const reportsEnv = "CONFORMANCE_REPORTS"

// save writes the report into the directory that the environment names, if it
// names one, as name-version-N.json: a broker's cases may be spread over several
// runs.
func (r *Report) save() (err error) {
	dir := os.Getenv(reportsEnv)
	if dir == "" {
		return nil
	}
	if err := os.MkdirAll(dir, 0o750); err != nil { //nolint:gosec // the user names the directory
		return fmt.Errorf("conformance: %s: %w", reportsEnv, err)
	}
	name := strings.Map(func(c rune) rune {
		if c == '/' || c == ' ' || c < ' ' {
			return '-'
		}
		return c
	}, strings.TrimSuffix(r.Name+"-"+r.Version, "-"))
	f, err := os.CreateTemp(dir, name+"-*.json")
	if err != nil {
		return fmt.Errorf("conformance: %s: %w", reportsEnv, err)
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	return r.WriteJSON(f)
}

// ReadReport reads what WriteJSON wrote.
func ReadReport(r io.Reader) (*Report, error) {
	var report Report
	d := json.NewDecoder(r)
	d.DisallowUnknownFields()
	if err := d.Decode(&report); err != nil {
		return nil, fmt.Errorf("conformance: read report: %w", err)
	}
	return &report, nil
}

// Summary returns one line: how many cases ended how, and the seed.
func (r *Report) Summary() string {
	return fmt.Sprintf("%s: %d passed, %d refused as they must, %d failed, %d expected differences, %d skipped (seed %d, %v)",
		strings.TrimSpace(r.Name+" "+r.Version), r.Count(StatusPass), r.Count(StatusRefused), r.Count(StatusFail),
		r.Count(StatusExpected), r.Count(StatusSkip), r.Seed, r.Elapsed.Round(time.Millisecond))
}
