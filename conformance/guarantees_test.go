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
		{[]*Report{one("1", StatusPass, 1), one("1", StatusFail, 1), one("1", StatusPass, 1)}, "| **BROKEN** [1](#case-1) |\n"},
		{[]*Report{one("1", StatusSkip, 1), one("1", StatusPass, 1), one("1", StatusPass, 13)}, "| yes [1](#case-1) |\n"},
		{[]*Report{one("1", StatusPass, 1), one("2", StatusExpected, 1)}, "| yes [1](#case-1) | differs [1](#case-1) |\n"},
	} {
		before := len(tt.reports[0].Results)
		var out strings.Builder
		if err := WriteGuarantees(&out, tt.reports...); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(out.String(), "what was accepted is delivered "+tt.want) {
			t.Errorf("want %q in\n%s", tt.want, out.String())
		}
		if len(tt.reports[0].Results) != before {
			t.Error("a report was changed")
		}
	}
}
