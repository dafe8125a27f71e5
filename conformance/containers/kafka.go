package containers

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
	"github.com/twmb/franz-go/pkg/kmsg"
)

// KafkaInstance is a Kafka broker with one node. Topics are not created by use;
// share groups are enabled; intervals that tests would wait for are short (see
// config/server.properties).
type KafkaInstance struct {
	*Instance
	// URL is the endpoint, kafka://host:port; several nodes are separated by commas.
	URL string
	// Addrs are the seed brokers, host:port each.
	Addrs []string
	// Security is how to get in, of a broker started with KafkaOptions.Secure.
	Security *KafkaSecurity
}

// KafkaOptions are the options of StartKafka. The zero value is a broker like
// the shared one.
type KafkaOptions struct {
	// AdvertisedAddr is the host:port that the broker tells its clients to
	// connect to. Default: the published port. A test that puts a proxy
	// between sets it to the proxy's address; the proxy's upstream is the
	// instance's Addrs[0].
	AdvertisedAddr string
	// Config are further settings of the broker, as in server.properties;
	// they win over the defaults.
	Config map[string]string
	// Secure lets clients in over TLS and SASL alone, and lets them do what
	// ACLs allow; see KafkaInstance.Security.
	Secure bool

	security *KafkaSecurity
}

// Kafka returns the Kafka broker of this test run: the one that the environment
// names, else one started once for this process. The error wraps ErrUnavailable
// when there is none.
func Kafka(ctx context.Context) (*KafkaInstance, error) {
	in, err := sharedInstance(ctx, KindKafka)
	if err != nil {
		return nil, err
	}
	return newKafka(in), nil
}

// StartKafka starts a Kafka broker for the caller alone, about seven seconds on
// two cores. The caller terminates it; what it forgets goes with the process.
func StartKafka(ctx context.Context, opts KafkaOptions) (*KafkaInstance, error) {
	if opts.AdvertisedAddr != "" {
		if _, _, ok := hostPort(opts.AdvertisedAddr); !ok {
			return nil, wrap("start", KindKafka, fmt.Errorf("AdvertisedAddr %q is not host:port", opts.AdvertisedAddr))
		}
	}
	if opts.Secure {
		var err error
		if opts.security, err = newKafkaSecurity(); err != nil {
			return nil, wrap("start", KindKafka, err)
		}
	}
	in, err := private(ctx, kafkaSpec(opts))
	if err != nil {
		return nil, err
	}
	kafka := newKafka(in)
	kafka.Security = opts.security
	return kafka, nil
}

func newKafka(in *Instance) *KafkaInstance {
	addr := in.at[roleClient]
	return &KafkaInstance{Instance: in, URL: "kafka://" + addr, Addrs: strings.Split(addr, ",")}
}

const kafkaDir = "/opt/queuestream/"

func kafkaSpec(opts KafkaOptions) spec {
	return spec{
		kind:       KindKafka,
		ports:      []port{{roleClient, 9092}},
		entrypoint: []string{"sh", kafkaDir + "kafka.sh"},
		cmd:        []string{},
		env: func(at addrs) map[string]string {
			advertised := opts.AdvertisedAddr
			if advertised == "" {
				advertised = at[roleClient]
			}
			env := map[string]string{"QUEUESTREAM_ADVERTISED": advertised}
			if opts.security != nil {
				env["QUEUESTREAM_FORMAT"] = opts.security.formatArgs()
			}
			return env
		},
		files: func(addrs) []file {
			props := config("server.properties", kafkaDir+"server.properties")
			if opts.security != nil {
				props.body = append(props.body, opts.security.properties()...)
			}
			for name, value := range opts.Config {
				props.body = fmt.Appendf(props.body, "%s=%s\n", name, value)
			}
			files := []file{
				config("kafka.sh", kafkaDir+"kafka.sh"),
				config("log4j2.yaml", kafkaDir+"log4j2.yaml"),
				props,
			}
			if opts.security != nil {
				files = append(files, file{path: kafkaChain, body: opts.security.chain, mode: 0o644})
			}
			return files
		},
		ready: func(ctx context.Context, at addrs) error { return kafkaReady(ctx, at, opts.security.client()) },
		grace: 20 * time.Second,
	}
}

// kafkaEnv reads kafka://host:port[,host:port...], or the addresses alone.
func kafkaEnv(value string) (addrs, error) {
	list := strings.TrimSuffix(strings.TrimPrefix(value, "kafka://"), "/")
	for addr := range strings.SplitSeq(list, ",") {
		if _, _, ok := hostPort(addr); !ok {
			return nil, fmt.Errorf("%q is not kafka://host:port", value)
		}
	}
	return addrs{roleClient: list}, nil
}

// kafkaReady asks the seed broker itself, and not the address that it
// advertises, which may be a proxy that is not up yet: all partitions have a
// leader, and the coordinators of groups and transactions answer.
func kafkaReady(ctx context.Context, at addrs, opts []kgo.Opt) error {
	cl, err := kgo.NewClient(append(opts, kgo.SeedBrokers(strings.Split(at[roleClient], ",")...), kgo.RetryTimeout(time.Second),
		kgo.DialTimeout(time.Second), kgo.RequestRetries(0))...)
	if err != nil {
		return err
	}
	defer cl.Close()
	seed := cl.SeedBrokers()[0]

	all := kmsg.NewPtrMetadataRequest()
	r, err := seed.Request(ctx, all)
	if err != nil {
		return err
	}
	meta, ok := r.(*kmsg.MetadataResponse)
	if !ok || len(meta.Brokers) == 0 {
		return errors.New("no broker has registered yet")
	}
	for _, t := range meta.Topics {
		for _, p := range t.Partitions {
			if err := kerr.ErrorForCode(p.ErrorCode); err != nil {
				return fmt.Errorf("a partition is not served yet: %w", err)
			}
		}
	}
	for _, coordinator := range []int8{0, 1} { // groups, transactions
		find := kmsg.NewPtrFindCoordinatorRequest()
		find.CoordinatorType = coordinator
		find.CoordinatorKey, find.CoordinatorKeys = "queuestream-ready", []string{"queuestream-ready"}
		r, err := seed.Request(ctx, find)
		if err != nil {
			return err
		}
		found, ok := r.(*kmsg.FindCoordinatorResponse)
		if !ok {
			return fmt.Errorf("unexpected answer %T", r)
		}
		codes := []int16{found.ErrorCode}
		for _, c := range found.Coordinators {
			codes = append(codes, c.ErrorCode)
		}
		for _, code := range codes {
			if err := kerr.ErrorForCode(code); err != nil {
				return fmt.Errorf("a coordinator is not up yet: %w", err)
			}
		}
	}
	return nil
}
