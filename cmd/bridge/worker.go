package main

import (
	"net"
	"net/url"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/queuestream/broker/bridge"
)

// checkWorker finds the mistakes in what the worker alone reads of a
// configuration, which data holds.
func checkWorker(c *bridge.WorkerConfig, data []byte, file string) error {
	var problems []bridge.Problem
	wrong := func(field, found, allowed string) {
		problems = append(problems, bridge.Problem{
			File: file, Line: workerLine(data, field), Field: "worker." + field, Found: found, Allowed: allowed,
		})
	}
	if !isAddress(orDefault(c.Listen, defaultListen)) {
		wrong("listen", strconv.Quote(c.Listen), "an address such as :8080")
	}
	off := c.AdminListen == adminOff
	if !off && !isAddress(orDefault(c.AdminListen, defaultAdminListen)) {
		wrong("admin_listen", strconv.Quote(c.AdminListen), "an address such as 127.0.0.1:8081, or off")
	}
	if off && c.Pprof {
		wrong("pprof", "true without the address that it is served on", "false, or an admin_listen")
	}
	if u, err := url.Parse(c.OTLPEndpoint); c.OTLPEndpoint != "" && (err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "") {
		wrong("otlp_endpoint", "no http:// or https:// URL", "for example http://collector:4318/v1/traces")
	}
	if problems == nil {
		return nil
	}
	return &bridge.ConfigError{Problems: problems}
}

func isAddress(s string) bool {
	_, port, err := net.SplitHostPort(s)
	_, bad := strconv.ParseUint(port, 10, 16)
	return err == nil && bad == nil
}

// workerLine returns the line of a field of worker, or 0.
func workerLine(data []byte, field string) int {
	var c struct {
		Worker map[string]yaml.Node `yaml:"worker"`
	}
	if yaml.Unmarshal(data, &c) != nil {
		return 0
	}
	n := c.Worker[field]
	return n.Line
}
