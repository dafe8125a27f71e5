package containers

import (
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
)

// resolved are the brokers that this process has found or started for all its
// tests. Each kind has a lock of its own, so that two start side by side.
var resolved = map[Kind]*resolution{
	KindKafka: {}, KindRabbitMQ: {}, KindSQS: {}, KindSNS: {},
}

type resolution struct {
	mu sync.Mutex
	in *Instance
	// err is remembered only when it wraps ErrUnavailable: looking again
	// would take as long and find as little.
	err error
}

// sharedInstance finds the kind's broker in the environment, or starts one for
// this process; the second call returns what the first found.
func sharedInstance(ctx context.Context, kind Kind) (*Instance, error) {
	r := resolved[kind]
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.in != nil || r.err != nil {
		return r.in, r.err
	}
	in, err := fromEnv(kind)
	if err != nil {
		return nil, wrap("find", kind, err)
	}
	if in == nil {
		in, err = startShared(ctx, kind)
	}
	if errors.Is(err, ErrUnavailable) {
		r.err = err
	}
	r.in = in
	return in, err
}

func startShared(ctx context.Context, kind Kind) (*Instance, error) {
	o, err := currentOwner()
	if err != nil {
		return nil, wrap("start", kind, err)
	}
	return start(ctx, specOf(kind), o.name(kind), o.labels())
}

// fromEnv returns the broker that the environment names, or nil.
func fromEnv(kind Kind) (*Instance, error) {
	value := os.Getenv(kind.Env())
	if value == "" {
		return nil, nil
	}
	var (
		at  addrs
		err error
	)
	switch kind {
	case KindKafka:
		at, err = kafkaEnv(value)
	case KindRabbitMQ:
		at, err = rabbitMQEnv(value)
	default:
		at, err = httpEnv(value)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", kind.Env(), err)
	}
	return &Instance{
		kind:      kind,
		version:   os.Getenv(kind.Env() + envVersion),
		container: os.Getenv(kind.Env() + envContainer),
		at:        at,
		serves:    specOf(kind).ready,
	}, nil
}

// Environ returns the environment, as NAME=value, by which another process
// finds the broker and controls it.
func (in *Instance) Environ() []string {
	name := in.kind.Env()
	var env []string
	add := func(suffix, value string) {
		if value != "" {
			env = append(env, name+suffix+"="+value)
		}
	}
	switch in.kind {
	case KindKafka:
		add("", newKafka(in).URL)
	case KindRabbitMQ:
		r := newRabbitMQ(in)
		add("", r.URL)
		add(envStream, r.StreamURL)
		add(envManagement, r.ManagementURL)
	case KindSQS:
		add("", newSQS(in).URL)
	case KindSNS:
		add("", newSNS(in).URL)
	}
	add(envContainer, in.container)
	add(envVersion, in.version)
	return env
}
