package main

import (
	"encoding/json"
	"os"
	"regexp"
	"testing"

	"github.com/prometheus/client_golang/prometheus"
)

// Every metric of the shipped dashboard is one that the worker exports.
func TestDashboardFitsTheMetrics(t *testing.T) {
	data, err := os.ReadFile("../../deploy/grafana/bridge.json")
	check(t, err)
	if !json.Valid(data) {
		t.Fatal("the dashboard is no JSON")
	}
	m := newMetrics(nil)
	descs := make(chan *prometheus.Desc, 100)
	m.Describe(descs)
	m.seconds.Describe(descs)
	close(descs)
	exported := map[string]bool{}
	name := regexp.MustCompile(`fqName: "([^"]+)"`)
	for d := range descs {
		exported[name.FindStringSubmatch(d.String())[1]] = true
	}
	used := regexp.MustCompile(`bridge_[a-z_]+`).FindAllString(string(data), -1)
	if len(used) < 8 {
		t.Errorf("the dashboard uses only %v", used)
	}
	for _, name := range used {
		base := regexp.MustCompile(`_(bucket|sum|count)$`).ReplaceAllString(name, "")
		if !exported[name] && !exported[base] {
			t.Errorf("the dashboard shows %s, which nobody exports", name)
		}
	}
}
