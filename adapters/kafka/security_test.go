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
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kfake"
	"github.com/twmb/franz-go/pkg/kmsg"
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

// What is published and read with each mechanism, over TLS: by the client of
// the Broker and by a group's own.
func TestTLSAndSASL(t *testing.T) {
	server, client := certificate(t)
	cluster := fake(t, kfake.TLS(server), kfake.EnableSASL(), kfake.EnableACLs(),
		kfake.Superuser("PLAIN", "plain", "secret"),
		kfake.Superuser("SCRAM-SHA-256", "scram256", "secret"), kfake.Superuser("SCRAM-SHA-512", "scram512", "secret"))
	hosts := strings.Join(cluster.ListenAddrs(), ",")
	for user, mechanism := range map[string]string{"plain": "plain", "scram256": "scram-sha-256", "scram512": "scram-sha-512"} {
		t.Run(mechanism, func(t *testing.T) {
			o, err := kafka.ParseURL("kafka://" + user + ":secret@" + hosts + "?tls=true&sasl=" + mechanism)
			if err != nil {
				t.Fatal(err)
			}
			if o.TLS == nil {
				t.Fatal("tls=true sets no TLS")
			}
			o.TLS = client
			s := declare(t, open(t, o), broker.StreamConfig{Partitions: 1})
			publish(t, s, 5)
			c := member(t, s, s.Name(), nil)
			if err := c.Commit(testContext(t), receive(t, c, 5)...); err != nil {
				t.Error(err)
			}
		})
	}
	t.Run("unknown authority", func(t *testing.T) {
		o, err := kafka.ParseURL("kafka://plain:secret@" + hosts + "?tls=true")
		if err != nil {
			t.Fatal(err)
		}
		_, err = kafka.Open(testContext(t), o)
		var unknown x509.UnknownAuthorityError
		if !errors.As(err, &unknown) {
			t.Errorf("open without the authority: %v, want x509.UnknownAuthorityError", err)
		}
	})
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
