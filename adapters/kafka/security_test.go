package kafka_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math/big"
	"net"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/adapters/kafka"
	"github.com/queuestream/broker/conformance/containers"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
	"github.com/twmb/franz-go/pkg/sasl"
	"github.com/twmb/franz-go/pkg/sasl/plain"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// certificate makes one for 127.0.0.1 that signs itself.
func certificate(t *testing.T) (server, client *tls.Config) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	own, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(own)
	return &tls.Config{MinVersion: tls.VersionTLS12, Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}}},
		&tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool}
}

// A secured cluster lets nobody in but its users, over TLS.
type secured struct {
	addrs []string
	tls   *tls.Config
	root  user // may do everything, and knows each mechanism
}

type user struct{ name, password string }

func securedFake(t *testing.T) *secured {
	t.Helper()
	server, client := certificate(t)
	c := &secured{tls: client, root: user{"root", "root-secret"}}
	opts := []kfake.Opt{kfake.TLS(server), kfake.EnableSASL(), kfake.EnableACLs()}
	for _, m := range mechanisms {
		opts = append(opts, kfake.Superuser(strings.ToUpper(m), c.root.name, c.root.password))
	}
	c.addrs = fake(t, opts...).ListenAddrs()
	return c
}

func securedReal(t *testing.T) *secured {
	t.Helper()
	if testing.Short() {
		t.Skip("needs Kafka: not run with -short")
	}
	in := containers.OwnKafka(t, containers.KafkaOptions{Secure: true})
	return &secured{addrs: in.Addrs, tls: in.Security.TLS(), root: user{in.Security.User, in.Security.Password}}
}

var mechanisms = []string{"plain", "scram-sha-256", "scram-sha-512"}

// options are those of a user, as a URL has them.
func (c *secured) options(t testing.TB, u user, mechanism string) *kafka.Options {
	t.Helper()
	o, err := kafka.ParseURL("kafka://" + u.name + ":" + u.password + "@" + strings.Join(c.addrs, ",") + "?tls=true&sasl=" + mechanism)
	if err != nil {
		t.Fatal(err)
	}
	if o.TLS == nil {
		t.Fatal("tls=true sets no TLS")
	}
	o.TLS = c.tls
	return o
}

// Who gets in, and what he may do: on a fake cluster, and on a real one of its
// own that all cases share.
func TestSecured(t *testing.T) {
	t.Parallel()
	for _, on := range []struct {
		name  string
		start func(t *testing.T) *secured
	}{{"fake", securedFake}, {"real", securedReal}} {
		t.Run(on.name, func(t *testing.T) {
			t.Parallel()
			c := on.start(t)
			for _, tt := range []struct {
				name string
				test func(t *testing.T, c *secured)
				real bool
			}{
				{"mechanisms", eachMechanism, false},
				{"wrong password", wrongPassword, true}, // kfake cuts the connection without a word
				{"wrong authority", wrongAuthority, false},
				{"no TLS", withoutTLS, false},
				{"no rights", withoutRights, false},
				{"rights in turn", rightsInTurn, false},
				{"rights withdrawn", rightsWithdrawn, false},
				{"waiters", waitersTold, false},
				{"dead letters", deadLettersNeedRights, false},
				{"lock not told", lockNotTold, true}, // kfake tells the cluster's own
				{"right to read", rightToRead, false},
			} {
				if tt.real && on.name != "real" {
					continue
				}
				t.Run(tt.name, func(t *testing.T) {
					t.Parallel()
					tt.test(t, c)
				})
			}
		})
	}
}

// What is published and read with each mechanism: by the client of the Broker
// and by a group's own.
func eachMechanism(t *testing.T, c *secured) {
	direct := map[string]sasl.Mechanism{
		"plain":         plain.Auth{User: c.root.name, Pass: c.root.password}.AsMechanism(),
		"scram-sha-256": scram.Auth{User: c.root.name, Pass: c.root.password}.AsSha256Mechanism(),
		"scram-sha-512": scram.Auth{User: c.root.name, Pass: c.root.password}.AsSha512Mechanism(),
	}
	for _, mechanism := range mechanisms {
		for by, o := range map[string]*kafka.Options{
			"URL":     c.options(t, c.root, mechanism),
			"options": {Brokers: c.addrs, TLS: c.tls, SASL: []sasl.Mechanism{direct[mechanism]}},
		} {
			t.Run(mechanism+" by "+by, func(t *testing.T) {
				t.Parallel()
				s := declare(t, open(t, o), broker.StreamConfig{Partitions: 1})
				publish(t, s, 5)
				c := member(t, s, s.Name(), nil)
				if err := c.Commit(testContext(t), receive(t, c, 5)...); err != nil {
					t.Error(err)
				}
			})
		}
	}
}

// A wrong password is told for good, and not shown.
func wrongPassword(t *testing.T, c *secured) {
	for _, mechanism := range mechanisms {
		for who, u := range map[string]user{
			"known":   {c.root.name, "not-the-secret"},
			"unknown": {"nobody", "not-the-secret"},
		} {
			t.Run(mechanism+" of "+who, func(t *testing.T) {
				t.Parallel()
				_, err := kafka.Open(testContext(t), c.options(t, u, mechanism))
				if !errors.Is(err, broker.ErrUnauthorized) || broker.IsTemporary(err) {
					t.Errorf("open: %v (temporary %v), want ErrUnauthorized for good", err, broker.IsTemporary(err))
				}
				if err != nil && strings.Contains(err.Error(), u.password) {
					t.Errorf("the error shows the password: %v", err)
				}
			})
		}
	}
}

// A client that does not trust who signed the broker's certificate says so.
func wrongAuthority(t *testing.T, c *secured) {
	_, other := certificate(t)
	for name, config := range map[string]*tls.Config{
		"the system's": {MinVersion: tls.VersionTLS12},
		"another's":    other,
	} {
		o := c.options(t, c.root, "plain")
		o.TLS = config
		_, err := kafka.Open(testContext(t), o)
		var unknown x509.UnknownAuthorityError
		if !errors.As(err, &unknown) {
			t.Errorf("open with %s authorities: %v, want x509.UnknownAuthorityError", name, err)
		}
	}
}

// A client that forgot TLS is told so.
func withoutTLS(t *testing.T, c *secured) {
	o := c.options(t, c.root, "plain")
	o.TLS = nil
	_, err := kafka.Open(testContext(t), o)
	if err == nil || !strings.Contains(strings.ToLower(err.Error()), "tls") {
		t.Errorf("open without TLS: %v, want an error that names TLS", err)
	}
}

// kfake knows neither of these mechanisms, so the test answers for it: the
// client names the mechanism and sends what its specification says.
func TestTokenMechanisms(t *testing.T) {
	for _, tt := range []struct {
		name, url string
		contains  []string
		answer    string
	}{
		{"OAUTHBEARER", "kafka://:the-token@HOST?sasl=oauthbearer", []string{"n,,", "auth=Bearer the-token"}, ""},
		{
			"AWS_MSK_IAM", "kafka://AKID:key@b-1.mine.kafka.eu-west-1.amazonaws.com:9098?sasl=aws-msk-iam&aws_session_token=session",
			[]string{`"action":"kafka-cluster:Connect"`, "AKID/", `"x-amz-security-token":"session"`}, `{"version":"2020_10_22","request-id":"1"}`,
		},
	} {
		t.Run(tt.name, func(t *testing.T) {
			cluster := fake(t)
			var mu sync.Mutex
			var mechanism string
			var sent []byte
			cluster.ControlKey(kmsg.SASLHandshake.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) { //nolint:revive // kfake's order
				cluster.KeepControl()
				in, ok := req.(*kmsg.SASLHandshakeRequest)
				resp, ok2 := req.ResponseKind().(*kmsg.SASLHandshakeResponse)
				mu.Lock()
				defer mu.Unlock()
				mechanism = in.Mechanism
				resp.SupportedMechanisms = []string{tt.name}
				return resp, nil, ok && ok2
			})
			cluster.ControlKey(kmsg.SASLAuthenticate.Int16(), func(req kmsg.Request) (kmsg.Response, error, bool) { //nolint:revive // kfake's order
				cluster.KeepControl()
				in, ok := req.(*kmsg.SASLAuthenticateRequest)
				resp, ok2 := req.ResponseKind().(*kmsg.SASLAuthenticateResponse)
				mu.Lock()
				defer mu.Unlock()
				sent = bytes.Clone(in.SASLAuthBytes)
				resp.SASLAuthBytes = []byte(tt.answer)
				for _, want := range tt.contains {
					if !bytes.Contains(sent, []byte(want)) {
						resp.ErrorCode = kerr.SaslAuthenticationFailed.Code
					}
				}
				return resp, nil, ok && ok2
			})
			o, err := kafka.ParseURL(strings.Replace(tt.url, "HOST", cluster.ListenAddrs()[0], 1))
			if err != nil {
				t.Fatal(err)
			}
			o.Dialer = func(ctx context.Context, network, _ string) (net.Conn, error) { // MSK's region is in its name
				return (&net.Dialer{}).DialContext(ctx, network, cluster.ListenAddrs()[0])
			}
			b, err := kafka.Open(testContext(t), o)
			if err != nil {
				t.Errorf("open: %v; it sent %q", err, sent)
			} else if err := b.Close(); err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			if mechanism != tt.name {
				t.Errorf("the client asked for %q", mechanism)
			}
			for _, want := range tt.contains {
				if !bytes.Contains(sent, []byte(want)) {
					t.Errorf("the client sent %q, which lacks %q", sent, want)
				}
			}
		})
	}
}
