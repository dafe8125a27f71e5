package containers

import "strings"

// Kind names one of the brokers that tests run against.
type Kind string

// The four brokers.
const (
	KindKafka    Kind = "kafka"    // Apache Kafka
	KindRabbitMQ Kind = "rabbitmq" // RabbitMQ with streams and management
	KindSQS      Kind = "sqs"      // ElasticMQ, which speaks SQS
	KindSNS      Kind = "sns"      // moto, which speaks SNS and has an SQS for it to deliver to
)

// Kinds returns all kinds, in the order in which they are listed to people.
func Kinds() []Kind { return []Kind{KindKafka, KindRabbitMQ, KindSQS, KindSNS} }

// ParseKind returns the kind that s names, in any case.
func ParseKind(s string) (Kind, bool) {
	for _, k := range Kinds() {
		if strings.EqualFold(s, string(k)) {
			return k, true
		}
	}
	return "", false
}

// Product returns the name of the software that plays the kind's part.
func (k Kind) Product() string {
	switch k {
	case KindKafka:
		return "Kafka"
	case KindRabbitMQ:
		return "RabbitMQ"
	case KindSQS:
		return "ElasticMQ"
	case KindSNS:
		return "moto"
	}
	return string(k)
}

// Env returns the name of the environment variable that holds the kind's
// endpoint, for example BROKER_TEST_KAFKA.
func (k Kind) Env() string { return "BROKER_TEST_" + strings.ToUpper(string(k)) }

// The suffixes of the other variables of a kind.
const (
	envContainer  = "_CONTAINER"  // the id of the container, so that it can be controlled
	envImage      = "_IMAGE"      // an image to use in place of the pinned one
	envVersion    = "_VERSION"    // the broker's version, for reports
	envStream     = "_STREAM"     // RabbitMQ's stream listener
	envManagement = "_MANAGEMENT" // RabbitMQ's management API
)

// envRun is the run that a process belongs to: a runner sets it for its command.
const envRun = "BROKER_TEST_RUN"
