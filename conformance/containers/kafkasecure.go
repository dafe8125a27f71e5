package containers

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/sasl/scram"
)

// KafkaSecurity is how a Kafka broker that was started with
// KafkaOptions.Secure is reached. It knows one user, who may do everything: also
// make others (of SCRAM alone, which need no restart), and allow them something.
type KafkaSecurity struct {
	// CA is the certificate that clients have to trust, in PEM. The broker's
	// own is for ServerName and 127.0.0.1.
	CA []byte
	// ServerName is what clients expect the broker to be called.
	ServerName string
	// User authenticates with PLAIN, SCRAM-SHA-256 or SCRAM-SHA-512.
	User, Password string

	chain []byte // the broker's certificate and its key, in PEM
}

// TLS returns the configuration of a client that trusts the broker.
func (s *KafkaSecurity) TLS() *tls.Config {
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.CA)
	return &tls.Config{MinVersion: tls.VersionTLS12, RootCAs: pool, ServerName: s.ServerName}
}

func newKafkaSecurity() (*KafkaSecurity, error) {
	s := &KafkaSecurity{ServerName: "localhost", User: "root", Password: rand.Text()}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	// It signs itself: one certificate is the authority and the broker's.
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Kafka for tests"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour),
		DNSNames: []string{s.ServerName}, IPAddresses: []net.IP{net.ParseIP(loopback)},
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, &key.PublicKey, key)
	if err != nil {
		return nil, err
	}
	private, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	s.CA = pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	s.chain = append(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: private}), s.CA...)
	return s, nil
}

const kafkaChain = kafkaDir + "broker.pem"

// properties are the settings of the broker. Nobody but itself comes through
// the listeners without users: they listen inside the container alone.
func (s *KafkaSecurity) properties() string {
	const client = "listener.name.client."
	return strings.Join([]string{
		"listener.security.protocol.map=CLIENT:SASL_SSL,INTERNAL:PLAINTEXT,CONTROLLER:PLAINTEXT",
		client + "ssl.keystore.type=PEM",
		client + "ssl.keystore.location=" + kafkaChain,
		client + "sasl.enabled.mechanisms=PLAIN,SCRAM-SHA-256,SCRAM-SHA-512",
		client + "plain.sasl.jaas.config=org.apache.kafka.common.security.plain.PlainLoginModule required" +
			fmt.Sprintf(" user_%s=%q;", s.User, s.Password),
		client + "scram-sha-256.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
		client + "scram-sha-512.sasl.jaas.config=org.apache.kafka.common.security.scram.ScramLoginModule required;",
		"authorizer.class.name=org.apache.kafka.metadata.authorizer.StandardAuthorizer",
		"super.users=User:" + s.User + ";User:ANONYMOUS",
	}, "\n") + "\n"
}

// formatArgs make the user known to SCRAM, whose passwords are part of the data.
func (s *KafkaSecurity) formatArgs() string {
	const add = "--add-scram SCRAM-SHA-%d=[name=%s,password=%s]"
	return fmt.Sprintf(add+" "+add, 256, s.User, s.Password, 512, s.User, s.Password)
}

// client returns the options of a client that may do everything; none if the
// broker asks nobody who he is.
func (s *KafkaSecurity) client() []kgo.Opt {
	if s == nil {
		return nil
	}
	return []kgo.Opt{
		kgo.DialTLSConfig(s.TLS()),
		kgo.SASL(scram.Auth{User: s.User, Pass: s.Password}.AsSha512Mechanism()),
	}
}
