package containers_test

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"testing"
	"time"

	amqp "github.com/rabbitmq/amqp091-go"
	streamamqp "github.com/rabbitmq/rabbitmq-stream-go-client/pkg/amqp"
	"github.com/rabbitmq/rabbitmq-stream-go-client/pkg/stream"

	"github.com/queuestream/broker/conformance/containers"
)

func amqpChannel(t *testing.T, url string) *amqp.Channel {
	t.Helper()
	conn, err := amqp.Dial(url)
	must(t, err)
	t.Cleanup(func() { conn.Close() })
	ch, err := conn.Channel()
	must(t, err)
	must(t, ch.Confirm(false))
	return ch
}

// quorumQueue declares a durable quorum queue.
func quorumQueue(t *testing.T, ch *amqp.Channel, name string) {
	t.Helper()
	_, err := ch.QueueDeclare(name, true, false, false, false, amqp.Table{amqp.QueueTypeArg: amqp.QueueTypeQuorum})
	must(t, err)
}

// amqpPublish publishes with a confirm.
func amqpPublish(ctx context.Context, ch *amqp.Channel, exchange, key, body string) error {
	c, err := ch.PublishWithDeferredConfirmWithContext(ctx, exchange, key, true, false,
		amqp.Publishing{DeliveryMode: amqp.Persistent, Body: []byte(body)})
	if err != nil {
		return err
	}
	if ok, err := c.WaitContext(ctx); err != nil || !ok {
		return fmt.Errorf("not confirmed: %w", err)
	}
	return nil
}

// amqpGet takes one message and acknowledges it, with a connection of its own
// for each attempt: an error closes it.
func amqpGet(t *testing.T, url, queue, want string) {
	t.Helper()
	eventually(t, 30*time.Second, func(context.Context) error {
		conn, err := amqp.Dial(url)
		if err != nil {
			return err
		}
		defer conn.Close()
		ch, err := conn.Channel()
		if err != nil {
			return err
		}
		d, ok, err := ch.Get(queue, false)
		if err != nil {
			return err
		}
		if !ok {
			return errors.New("the queue is empty")
		}
		if string(d.Body) != want {
			t.Fatalf("got %q, want %q", d.Body, want)
		}
		return d.Ack(false)
	})
}

func TestRabbitMQPublishAndRead(t *testing.T) {
	rabbit := containers.NeedRabbitMQ(t)
	ch, queue := amqpChannel(t, rabbit.URL), unique(t)
	quorumQueue(t, ch, queue)
	t.Cleanup(func() { _, _ = ch.QueueDelete(queue, false, false, false) })
	must(t, amqpPublish(within(t, 10*time.Second), ch, "", queue, "hello"))
	amqpGet(t, rabbit.URL, queue, "hello")
}

func TestRabbitMQHasTheConsistentHashExchange(t *testing.T) {
	rabbit := containers.NeedRabbitMQ(t)
	ch, name := amqpChannel(t, rabbit.URL), unique(t)
	must(t, ch.ExchangeDeclare(name, "x-consistent-hash", false, true, false, false, nil))
	quorumQueue(t, ch, name)
	t.Cleanup(func() { _, _ = ch.QueueDelete(name, false, false, false) })
	must(t, ch.QueueBind(name, "1", name, false, nil)) // the key is a weight
	must(t, amqpPublish(within(t, 10*time.Second), ch, name, "some key", "hashed"))
	amqpGet(t, rabbit.URL, name, "hashed")
}

func TestRabbitMQManagement(t *testing.T) {
	rabbit := containers.NeedRabbitMQ(t)
	if rabbit.ManagementURL == "" {
		t.Skip("the environment names no management API: set BROKER_TEST_RABBITMQ_MANAGEMENT")
	}
	req, err := http.NewRequestWithContext(within(t, 10*time.Second), http.MethodGet, rabbit.ManagementURL+"/api/queues", nil)
	must(t, err)
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	must(t, err)
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Fatalf("the management API answers %s", resp.Status)
	}
}

func TestRabbitMQStream(t *testing.T) {
	rabbit := containers.NeedRabbitMQ(t)
	if rabbit.StreamURL == "" {
		t.Skip("the environment names no stream listener: set BROKER_TEST_RABBITMQ_STREAM")
	}
	env, err := stream.NewEnvironment(stream.NewEnvironmentOptions().SetUri(rabbit.StreamURL))
	must(t, err)
	t.Cleanup(func() { env.Close() })
	name := unique(t)
	must(t, env.DeclareStream(name, nil))
	t.Cleanup(func() { _ = env.DeleteStream(name) })

	const n = 100
	producer, err := env.NewProducer(name, nil)
	must(t, err)
	confirms := producer.NotifyPublishConfirmation()
	for i := range n {
		must(t, producer.Send(streamamqp.NewMessage(fmt.Appendf(nil, "message %d", i))))
	}
	for confirmed := 0; confirmed < n; {
		select {
		case batch := <-confirms:
			confirmed += len(batch)
		case <-within(t, 30*time.Second).Done():
			t.Fatalf("%d of %d messages were confirmed", confirmed, n)
		}
	}
	must(t, producer.Close())

	got := make(chan string, n)
	consumer, err := env.NewConsumer(name, func(_ stream.ConsumerContext, m *streamamqp.Message) {
		got <- string(m.GetData())
	}, stream.NewConsumerOptions().SetOffset(stream.OffsetSpecification{}.First()))
	must(t, err)
	defer consumer.Close()
	for i := range n {
		select {
		case m := <-got:
			if want := fmt.Sprintf("message %d", i); m != want {
				t.Fatalf("got %q, want %q", m, want)
			}
		case <-within(t, 30*time.Second).Done():
			t.Fatalf("%d of %d messages were read", i, n)
		}
	}
}

// What was confirmed outlives a kill, a pause and a restart.
func TestRabbitMQComesBackWithItsData(t *testing.T) {
	t.Parallel()
	rabbit := containers.OwnRabbitMQ(t)
	ctx := within(t, 3*time.Minute)
	queue := unique(t)
	ch := amqpChannel(t, rabbit.URL)
	quorumQueue(t, ch, queue)
	must(t, amqpPublish(ctx, ch, "", queue, "before the kill"))

	must(t, rabbit.AwaitQueueOnDisk(ctx, queue))
	must(t, rabbit.Kill(ctx))
	if err := rabbit.Probe(ctx); err == nil {
		t.Fatal("a killed broker answers")
	}
	must(t, rabbit.Start(ctx))
	amqpGet(t, rabbit.URL, queue, "before the kill")
	ch = amqpChannel(t, rabbit.URL)

	must(t, rabbit.Pause(ctx))
	during, cancel := context.WithTimeout(ctx, time.Second)
	err := amqpPublish(during, ch, "", queue, "during the pause")
	cancel()
	if err == nil {
		t.Fatal("a paused broker confirms")
	}
	must(t, rabbit.Resume(ctx))
	// The message was on its way when the broker stood still.
	amqpGet(t, rabbit.URL, queue, "during the pause")

	must(t, amqpPublish(ctx, amqpChannel(t, rabbit.URL), "", queue, "before the restart"))
	must(t, rabbit.Restart(ctx))
	amqpGet(t, rabbit.URL, queue, "before the restart")
}
