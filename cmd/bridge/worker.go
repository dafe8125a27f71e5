package main

import (
	"fmt"
	"net"
	"net/url"
	"strconv"

	"github.com/queuestream/broker/bridge"
)

// checkWorker finds the mistakes in what the worker alone reads of a
// configuration.
func checkWorker(cfg *bridge.Config) error {
	c := &cfg.Worker
	var problems []bridge.Problem
	wrong := func(field, found, allowed string) {
		problems = append(problems, cfg.Problem("worker."+field, found, allowed))
	}
	listen, admin := orDefault(c.Listen, defaultListen), orDefault(c.AdminListen, defaultAdminListen)
	off := admin == adminOff
	switch {
	case !isAddress(listen):
		wrong("listen", strconv.Quote(c.Listen), "an address such as :8080")
	case off:
	case !isAddress(admin):
		wrong("admin_listen", strconv.Quote(c.AdminListen), "an address such as 127.0.0.1:8081, or off")
	case collide(listen, admin):
		field := "listen"
		if c.Listen == "" {
			field = "admin_listen"
		}
		wrong(field, fmt.Sprintf("the port of %s is that of %s", listen, admin), "listen and admin_listen on different ports")
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

// collide tells whether two addresses cannot both be listened on.
func collide(a, b string) bool {
	hostA, portA, _ := net.SplitHostPort(a)
	hostB, portB, _ := net.SplitHostPort(b)
	every := func(host string) bool { ip := net.ParseIP(host); return host == "" || ip.IsUnspecified() }
	return portA == portB && portA != "0" && (hostA == hostB || every(hostA) || every(hostB))
}
