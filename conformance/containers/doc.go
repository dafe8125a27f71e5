// Package containers gives tests real brokers: Kafka, RabbitMQ, SQS (ElasticMQ)
// and SNS (moto, with an SQS of its own).
//
// # Where a broker comes from
//
// In this order:
//
//  1. An endpoint in the environment: BROKER_TEST_KAFKA (kafka://host:port),
//     BROKER_TEST_RABBITMQ (amqp://user:password@host:port/, with
//     BROKER_TEST_RABBITMQ_STREAM and BROKER_TEST_RABBITMQ_MANAGEMENT beside
//     it), BROKER_TEST_SQS and BROKER_TEST_SNS (http://host:port).
//  2. A container that this process starts once, through testcontainers-go,
//     from the first image to be had: the one that BROKER_TEST_KAFKA_IMAGE and
//     so on name; the one built locally; the official one, if present; the
//     official one pulled, except when CI=true; one built from images/.
//  3. None: an error that wraps ErrUnavailable. NeedKafka and its siblings then
//     skip the test and say what to do, or fail it when CI=true.
//
// The runner, cmd/brokers, makes one start per broker serve a whole
// "go test ./...", whose packages are tested by processes of their own: it
// starts the brokers, passes their endpoints on by environment, and removes them.
//
// # Power
//
// Every instance can be stopped, killed, paused and brought back at the same
// endpoints, also by another process than the one that started it: the
// environment carries the id of its container. For a broker given by its endpoint
// alone those methods return ErrNotControlled. A test that uses them takes a
// broker for itself, which no other test sees:
//
//	func TestSurvivesKill(t *testing.T) {
//		kafka := containers.OwnKafka(t, containers.KafkaOptions{})
//		// produce ...
//		if err := kafka.Kill(t.Context()); err != nil { ... }
//		if err := kafka.Start(t.Context()); err != nil { ... }
//		// consume ...
//	}
//
// Kafka tells its clients where to connect. A test that puts a proxy between
// starts a broker that advertises the proxy (KafkaOptions.AdvertisedAddr).
//
// # Nothing stays, nothing meets
//
// Ports are chosen at random and stay with a broker over its restarts.
// Containers carry labels that say which run and process they belong to. They are
// removed by whoever started them; by a small process that waits for that one's
// end, however it comes; and, should both have been killed, by the next start.
// Brokers of two runs side by side have nothing in common.
//
// The package is for tests and tools. It runs commands (docker, and bash for the
// building of images), sets TESTCONTAINERS_RYUK_DISABLED, since what Ryuk does is
// done here, and silences testcontainers-go's default logger.
package containers
