package main

import (
	"bytes"
	"context"
	"net/http"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/containers"
)

// The program runs on the real brokers: a case for each thing that it has to
// get right there, and one that the broker refuses.
func TestReal(t *testing.T) {
	t.Setenv("CONFORMANCE_REPORTS", "") // a few cases are no column of the guarantees
	const pass, refused = conformance.StatusPass, conformance.StatusRefused
	for _, test := range []struct {
		name   string
		args   func(t *testing.T) []string
		queue  map[int]conformance.Status
		stream map[int]conformance.Status
	}{
		{
			"kafka", func(t *testing.T) []string { return []string{containers.NeedKafka(t).URL} },
			map[int]conformance.Status{1: pass, 14: refused},
			map[int]conformance.Status{1: pass, 29: pass, 63: pass},
		},
		{
			"amqp", func(t *testing.T) []string {
				in := containers.NeedRabbitMQ(t)
				if in.StreamURL == "" {
					t.Skip("the environment names no stream listener: set BROKER_TEST_RABBITMQ_STREAM")
				}
				return []string{"-stream-url", in.StreamURL, in.URL + "?management=" + url.QueryEscape(in.ManagementURL)}
			},
			map[int]conformance.Status{1: pass, 14: pass},
			map[int]conformance.Status{1: pass, 29: pass, 63: refused},
		},
		{
			"sqs", func(t *testing.T) []string {
				return []string{"sqs://test:test@us-east-1?endpoint=" + url.QueryEscape(containers.NeedSQS(t).URL) + "&poll_wait=1s"}
			},
			map[int]conformance.Status{1: pass, 14: pass},
			nil,
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out, log bytes.Buffer
			path := filepath.Join(t.TempDir(), "report.json")
			args := []string{"-only", "1,14,29,63", "-messages", "20", "-seed", "7", "-version", "x", "-report", path}
			if status := program(t.Context(), append(args, test.args(t)...), &out, &log); status != 0 {
				t.Errorf("status %d\n%s%s", status, out.String(), log.String())
			}
			r := readReport(t, path)
			if r.Name != test.name || r.Version != "x" || r.Seed != 7 || r.Queue == nil || (r.Stream == nil) != (test.stream == nil) || len(r.Results) != len(test.queue)+len(test.stream) {
				t.Errorf("%+v", r)
			}
			for kind, want := range map[conformance.Kind]map[int]conformance.Status{conformance.Queue: test.queue, conformance.Stream: test.stream} {
				for id, status := range want {
					if x := r.Find(id, kind); x == nil || x.Status != status || (x.Reason == "") != (status == pass) {
						t.Errorf("%v %d: %+v, want %s", kind, id, x, status)
					}
					if line := string(status) + strings.Repeat(" ", 9-len(status)) + kind.String(); !strings.Contains(out.String(), line) {
						t.Errorf("no %q in\n%s", line, out.String())
					}
				}
			}
		})
	}
}

// A user that RabbitMQ knows and lets make nothing, and one that it does not know.
func TestRealDenied(t *testing.T) {
	in := containers.NeedRabbitMQ(t)
	if in.ManagementURL == "" {
		t.Skip("a user without permissions needs BROKER_TEST_RABBITMQ_MANAGEMENT")
	}
	name := "reader-" + broker.NewID()[24:]
	manage(t, in.ManagementURL, http.MethodPut, "users/"+name, `{"password":"secret","tags":""}`)
	t.Cleanup(func() { manage(t, in.ManagementURL, http.MethodDelete, "users/"+name, "") })
	manage(t, in.ManagementURL, http.MethodPut, "permissions/%2F/"+name, `{"configure":"^$","write":"^$","read":".*"}`)
	for user, want := range map[*url.Userinfo]int{
		url.UserPassword(name, "secret"): exitRefused,
		url.UserPassword(name, "wrong"):  exitUnreached,
	} {
		u, err := url.Parse(in.URL)
		if err != nil {
			t.Fatal(err)
		}
		u.User = user
		var out, log bytes.Buffer
		if status := program(t.Context(), []string{u.String()}, &out, &log); status != want || !strings.Contains(log.String(), "not authorized") || out.Len() > 0 {
			t.Errorf("%v: status %d, want %d\n%s%s", user, status, want, log.String(), out.String())
		}
	}
}

// manage calls RabbitMQ's management API.
func manage(t *testing.T, base, method, path, body string) {
	t.Helper()
	r, err := http.NewRequestWithContext(context.WithoutCancel(t.Context()), method, base+"/api/"+path, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	client := &http.Client{Timeout: 10 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
	res, err := client.Do(r)
	if err != nil {
		t.Fatal(err)
	}
	if err := res.Body.Close(); err != nil || res.StatusCode >= http.StatusMultipleChoices {
		t.Fatal(method, path, res.Status, err)
	}
}
