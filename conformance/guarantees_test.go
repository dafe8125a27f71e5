package conformance

import (
	"strings"
	"testing"
)

// The runs of one broker make one column, in which the worst result counts.
func TestGuaranteesMergeRuns(t *testing.T) {
	one := func(version string, status Status, id int) *Report {
		return &Report{Name: "x", Version: version, Results: []Result{{ID: id, Kind: "queue", Status: status, Failures: []string{"seen"}}}}
	}
	for _, tt := range []struct {
		reports []*Report
		want    string // of the row of case 1
	}{
		{[]*Report{one("1", StatusPass, 1), one("1", StatusFail, 1), one("1", StatusPass, 1)}, "| **[BROKEN](#case-1)** |\n"},
		{[]*Report{one("1", StatusSkip, 1), one("1", StatusPass, 1), one("1", StatusPass, 13)}, "| [yes](#case-1) |\n"},
		{[]*Report{one("1", StatusPass, 1), one("2", StatusExpected, 1)}, "| [yes](#case-1) | [differs](#case-1) |\n"},
	} {
		before := len(tt.reports[0].Results)
		var out strings.Builder
		if err := WriteGuarantees(&out, tt.reports...); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "what was accepted is delivered [1](#case-1) "+tt.want) {
			t.Errorf("want %q in\n%s", tt.want, out.String())
		}
		if len(tt.reports[0].Results) != before {
			t.Error("a report was changed")
		}
	}
}

// A cell links to the case that decided.
func TestGuaranteesTellWhatDecided(t *testing.T) {
	g := &guarantee{cases: []int{1, 2, 3}}
	for want, statuses := range map[string][]Status{
		"–":                     {"", "", ""},
		"[yes](#case-1)":        {StatusPass, StatusPass, StatusPass},
		"[yes](#case-2)":        {"", StatusPass, ""},
		"[no](#case-1)":         {StatusRefused, StatusRefused, StatusRefused},
		"[not run](#case-3)":    {"", "", StatusSkip},
		"[partly](#case-3)":     {StatusPass, StatusRefused, StatusSkip},
		"[partly](#case-2)":     {StatusPass, StatusRefused, StatusPass},
		"[differs](#case-2)":    {StatusPass, StatusExpected, StatusSkip},
		"**[BROKEN](#case-3)**": {StatusPass, StatusExpected, StatusFail},
	} {
		r := &Report{}
		for i, s := range statuses {
			if s != "" {
				r.Results = append(r.Results, Result{ID: i + 1, Kind: "queue", Status: s})
			}
		}
		if got := g.cell(r, Queue); got != want {
			t.Errorf("%v: %s, want %s", statuses, got, want)
		}
	}
}
