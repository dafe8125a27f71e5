package kafka_test

import (
	"errors"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
)

func TestParseURL(t *testing.T) {
	for _, tt := range []struct {
		url     string
		brokers []string
		check   func(o *kafka.Options) bool
	}{
		{"kafka://localhost", []string{"localhost:9092"}, nil},
		{"kafka://localhost/", []string{"localhost:9092"}, nil},
		{"kafka://a:1,b,c:3", []string{"a:1", "b:9092", "c:3"}, nil},
		{"kafka://[::1]:9093,[::2]", []string{"[::1]:9093", "[::2]:9092"}, nil},
		{"kafka://h?client_id=x&compression=zstd&linger=5ms", []string{"h:9092"}, func(o *kafka.Options) bool {
			return o.ClientID == "x" && o.Compression == "zstd" && o.Linger == 5*time.Millisecond
		}},
		{"kafka://u:p%40ss@h", []string{"h:9092"}, func(o *kafka.Options) bool { return len(o.SASL) == 1 && o.SASL[0].Name() == "PLAIN" }},
		{"kafka://u:p@h?sasl=scram-sha-512&tls=true", []string{"h:9092"}, func(o *kafka.Options) bool {
			return o.SASL[0].Name() == "SCRAM-SHA-512" && o.TLS != nil
		}},
		{"kafka://:token@h?sasl=oauthbearer", []string{"h:9092"}, func(o *kafka.Options) bool { return o.SASL[0].Name() == "OAUTHBEARER" }},
		{"kafka://k:s@h?sasl=aws-msk-iam", []string{"h:9092"}, func(o *kafka.Options) bool { return o.SASL[0].Name() == "AWS_MSK_IAM" }},
		{"kafka://h?tls_server_name=x", []string{"h:9092"}, func(o *kafka.Options) bool { return o.TLS.ServerName == "x" }},
		{"kafka://h?server_side_groups=true&session_timeout=10s&instance_id=i", []string{"h:9092"}, func(o *kafka.Options) bool {
			return o.ServerSideGroups && o.SessionTimeout == 10*time.Second && o.InstanceID == "i"
		}},
	} {
		o, err := kafka.ParseURL(tt.url)
		if err != nil {
			t.Errorf("%s: %v", tt.url, err)
			continue
		}
		if !slices.Equal(o.Brokers, tt.brokers) || tt.check != nil && !tt.check(o) {
			t.Errorf("%s: %+v", tt.url, o)
		}
	}
}

func TestParseURLRefuses(t *testing.T) {
	for url, names := range map[string]string{
		"":                              "kafka://",
		"amqp://h":                      "kafka://",
		"kafka://":                      "host",
		"kafka://a,,b":                  "host",
		"kafka://h/topic":               "host",
		"kafka://h?color=red":           "color",
		"kafka://h?linger=5":            "linger",
		"kafka://h?linger=-5ms":         "Linger",
		"kafka://h?tls=perhaps":         "tls",
		"kafka://h?tls=1&tls=0":         "tls",
		"kafka://h?fetch_max_bytes=x":   "fetch_max_bytes",
		"kafka://h?compression=rar":     "rar",
		"kafka://h?sasl=plain":          "sasl",
		"kafka://u:secret@h?sasl=rot13": "rot13",
		"kafka://u:secret%zz@h":         "encoded",
		"kafka://u:secret@h?%zz":        "encoded",
	} {
		_, err := kafka.ParseURL(url)
		var e *broker.Error
		if !errors.Is(err, broker.ErrInvalid) || !errors.As(err, &e) || e.Adapter != "kafka" {
			t.Errorf("%s: %v, want ErrInvalid of kafka", url, err)
			continue
		}
		if !strings.Contains(err.Error(), names) {
			t.Errorf("%s: %v, which does not name %q", url, err, names)
		}
		if strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: the error shows the password: %v", url, err)
		}
	}
}

// Whatever is parsed either is an error of the right kind or can be used.
func FuzzParseURL(f *testing.F) {
	for _, s := range []string{
		"kafka://h", "kafka://u:p@a:1,b?tls=true&linger=5ms", "kafka://[::1]:9092", "kafka://h?sasl=plain", "kafka://@:@,?&=",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		o, err := kafka.ParseURL(s)
		if err != nil {
			if !errors.Is(err, broker.ErrInvalid) {
				t.Fatalf("%q: %v, want ErrInvalid", s, err)
			}
			return
		}
		if len(o.Brokers) == 0 || slices.Contains(o.Brokers, "") {
			t.Fatalf("%q: brokers %q", s, o.Brokers)
		}
	})
}
