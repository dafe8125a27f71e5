module github.com/queuestream/broker

go 1.26.0

require (
	github.com/Shopify/toxiproxy/v2 v2.12.0 // conformance/faultproxy: faults on the network, in process
	github.com/alecthomas/kong v1.17.0 // cmd/bridge: the command line
	github.com/aws/aws-sdk-go-v2 v1.47.7 // adapters/sqs: the client
	github.com/aws/aws-sdk-go-v2/config v1.33.15 // adapters/sqs: the default configuration chain
	github.com/aws/aws-sdk-go-v2/credentials v1.20.15 // adapters/sqs: roles and static keys
	github.com/aws/aws-sdk-go-v2/service/s3 v1.114.8 // bridge/blob/s3: claim checks
	github.com/aws/aws-sdk-go-v2/service/sns v1.47.9 // adapters/sqs: exchanges
	github.com/aws/aws-sdk-go-v2/service/sqs v1.52.10 // adapters/sqs: the client
	github.com/aws/aws-sdk-go-v2/service/sts v1.51.8 // adapters/sqs: roles, and the account of SNS topics
	github.com/aws/smithy-go v1.28.8 // adapters/sqs: error codes
	github.com/containerd/errdefs v1.0.0 // conformance/containers: errors of the engine
	github.com/expr-lang/expr v1.17.8 // bridge: filters and mappings
	github.com/klauspost/compress v1.20.3 // adapters/rabbitmq: reading streams that others compressed
	github.com/moby/moby/api v1.56.1 // conformance/containers: pause and kill
	github.com/moby/moby/client v0.6.2 // conformance/containers: pause and kill
	github.com/pierrec/lz4/v4 v4.1.33 // adapters/rabbitmq: reading streams that others compressed
	github.com/prometheus/client_golang v1.25.0 // cmd/bridge: /metrics
	github.com/rabbitmq/amqp091-go v1.16.0 // adapters/rabbitmq: the client
	github.com/rabbitmq/rabbitmq-stream-go-client v1.8.3 // adapters/rabbitmq: the AMQP 1.0 codec of streams
	github.com/rs/zerolog v1.33.0 // conformance/faultproxy: silences toxiproxy
	github.com/spaolacci/murmur3 v1.1.0 // indirect; adapters/rabbitmq: the hash of super streams, as other clients have it
	github.com/testcontainers/testcontainers-go v0.45.0 // conformance/containers: starts the brokers
	github.com/twmb/franz-go v1.22.2 // adapters/kafka: the client
	github.com/twmb/franz-go/pkg/kadm v1.19.0 // adapters/kafka: administration
	github.com/twmb/franz-go/pkg/kfake v0.0.0-20260918054303-01f206a7e32c // tests: Kafka in process
	github.com/twmb/franz-go/pkg/kmsg v1.15.0 // adapters/kafka: share groups and transactions, by request
	go.opentelemetry.io/otel v1.47.0 // cmd/bridge: traces
	go.opentelemetry.io/otel/exporters/otlp/otlptrace/otlptracehttp v1.47.0 // cmd/bridge: where traces go
	go.opentelemetry.io/otel/sdk v1.47.0 // cmd/bridge: traces
	go.opentelemetry.io/otel/trace v1.47.0 // cmd/bridge: traces
	go.uber.org/goleak v1.3.0 // tests, conformance/faultproxy: no goroutine survives
	go.yaml.in/yaml/v3 v3.0.5 // bridge: configuration with lines
	golang.org/x/sync v0.24.0 // adapters/rabbitmq: the window of confirms
	golang.org/x/time v0.16.0 // Worker.RateLimit
	google.golang.org/protobuf v1.36.12 // codec/protobuf
	pgregory.net/rapid v1.3.0 // tests: models
)

require (
	dario.cat/mergo v1.0.2 // indirect
	github.com/Azure/go-ansiterm v0.0.0-20261006220739-8c912ac31dd4 // indirect
	github.com/Microsoft/go-winio v0.6.2 // indirect
	github.com/aws/aws-sdk-go-v2/aws/protocol/eventstream v1.7.26 // indirect
	github.com/aws/aws-sdk-go-v2/feature/ec2/imds v1.20.7 // indirect
	github.com/aws/aws-sdk-go-v2/internal/configsources v1.5.10 // indirect
	github.com/aws/aws-sdk-go-v2/internal/endpoints/v2 v2.8.10 // indirect
	github.com/aws/aws-sdk-go-v2/internal/v4a v1.5.10 // indirect
	github.com/aws/aws-sdk-go-v2/service/internal/accept-encoding v1.13.24 // indirect
	github.com/aws/aws-sdk-go-v2/service/internal/checksum v1.11.11 // indirect
	github.com/aws/aws-sdk-go-v2/service/internal/presigned-url v1.14.10 // indirect
	github.com/aws/aws-sdk-go-v2/service/internal/s3shared v1.20.10 // indirect
	github.com/aws/aws-sdk-go-v2/service/signin v1.12.3 // indirect
	github.com/aws/aws-sdk-go-v2/service/sso v1.39.3 // indirect
	github.com/aws/aws-sdk-go-v2/service/ssooidc v1.44.3 // indirect
	github.com/beorn7/perks v1.0.1 // indirect
	github.com/cenkalti/backoff/v4 v4.3.0 // indirect
	github.com/cenkalti/backoff/v5 v5.0.3 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/containerd/errdefs/pkg v0.3.0 // indirect
	github.com/containerd/log v0.1.0 // indirect
	github.com/containerd/platforms v0.2.1 // indirect
	github.com/cpuguy83/dockercfg v0.3.2 // indirect
	github.com/distribution/reference v0.6.0 // indirect
	github.com/docker/go-connections v0.8.2 // indirect
	github.com/docker/go-units v0.5.0 // indirect
	github.com/ebitengine/purego v0.10.1 // indirect
	github.com/felixge/httpsnoop v1.1.0 // indirect
	github.com/go-logr/logr v1.4.4 // indirect
	github.com/go-logr/stdr v1.2.2 // indirect
	github.com/go-ole/go-ole v1.3.0 // indirect
	github.com/golang/snappy v1.0.0 // indirect
	github.com/google/uuid v1.6.0 // indirect
	github.com/gorilla/mux v1.8.1 // indirect
	github.com/grpc-ecosystem/grpc-gateway/v2 v2.30.0 // indirect
	github.com/kr/text v0.2.0 // indirect
	github.com/lufia/plan9stats v0.0.0-20260330125221-c963978e514e // indirect
	github.com/magiconair/properties v1.18.12 // indirect
	github.com/mattn/go-colorable v0.1.13 // indirect
	github.com/mattn/go-isatty v0.0.20 // indirect
	github.com/moby/docker-image-spec v1.3.1 // indirect
	github.com/moby/go-archive v0.3.3 // indirect
	github.com/moby/patternmatcher v0.6.1 // indirect
	github.com/moby/sys/sequential v0.7.0 // indirect
	github.com/moby/sys/user v0.4.1 // indirect
	github.com/moby/sys/userns v0.1.0 // indirect
	github.com/moby/term v0.5.2 // indirect
	github.com/munnerz/goautoneg v0.0.0-20191010083416-a7dc8b61c822 // indirect
	github.com/opencontainers/go-digest v1.0.0 // indirect
	github.com/opencontainers/image-spec v1.1.1 // indirect
	github.com/pierrec/lz4 v2.6.1+incompatible // indirect
	github.com/pkg/errors v0.9.1 // indirect
	github.com/power-devops/perfstat v0.0.0-20240221224432-82ca36839d55 // indirect
	github.com/prometheus/client_model v0.6.3 // indirect
	github.com/prometheus/common v0.72.0 // indirect
	github.com/prometheus/procfs v0.22.0 // indirect
	github.com/rs/xid v1.5.0 // indirect
	github.com/shirou/gopsutil/v4 v4.26.6 // indirect
	github.com/sirupsen/logrus v1.9.4 // indirect
	github.com/stretchr/testify v1.12.1 // indirect
	github.com/tklauser/go-sysconf v0.4.0 // indirect
	github.com/tklauser/numcpus v0.12.0 // indirect
	github.com/yusufpapurcu/wmi v1.2.4 // indirect
	go.opentelemetry.io/auto/sdk v1.2.1 // indirect
	go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp v0.70.0 // indirect
	go.opentelemetry.io/otel/exporters/otlp/otlptrace v1.47.0 // indirect
	go.opentelemetry.io/otel/log v1.47.0 // indirect
	go.opentelemetry.io/otel/metric v1.47.0 // indirect
	go.opentelemetry.io/proto/otlp v1.11.0 // indirect
	golang.org/x/crypto v0.58.0 // indirect
	golang.org/x/net v0.60.0 // indirect
	golang.org/x/sys v0.49.0 // indirect
	golang.org/x/text v0.43.0 // indirect
	google.golang.org/genproto/googleapis/api v0.0.0-20260928230214-8a89bd6388cc // indirect
	google.golang.org/genproto/googleapis/rpc v0.0.0-20260928230214-8a89bd6388cc // indirect
	google.golang.org/grpc v1.83.2 // indirect
	gopkg.in/tomb.v1 v1.0.0-20141024135613-dd632973f1e7 // indirect
)
