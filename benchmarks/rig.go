package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"sync/atomic"
	"time"
)

// A rig is what a contender brings to a place: its clients, opened, and used
// in the way that its documentation tells. What it lacks is nil.
type rig struct {
	// send returns once the broker has the message; many goroutines call it.
	send func(ctx context.Context, body []byte) error
	// flood sends n messages from one goroutine as fast as the client can; by
	// default it calls send n times.
	flood func(ctx context.Context, n int) error
	// read joins, receives and acknowledges one message after the other until
	// got returns false or ctx ends (nil then).
	read func(ctx context.Context, got func(body []byte) (more bool)) error
	// stop closes the clients.
	stop func() error
}

// A place is a queue, topic or stream for one run.
type place struct {
	name  string
	keeps bool // a stream: what was read stays
	// held is how many messages it holds; nil if it cannot be known.
	held   func(ctx context.Context) (int64, error)
	remove func(ctx context.Context) error
}

type (
	// makePlace makes one for a run of n messages.
	makePlace func(ctx context.Context, n int) (place, error)
	makeRig   func(ctx context.Context, p place) (rig, error)
)

const (
	defaultSize = 256
	goroutines  = 64 // that make blocking calls
	chunk       = 1000
)

const halfLoadWhat = "64 goroutines send, with a blocking call for each message, and one reads. At half of what they take together: the time from when a message was due to its receipt."

// payloadSize is that of the scenario that runs.
var payloadSize = defaultSize

// payload is a text, since that is what every broker takes as it is.
func payload() []byte {
	b := make([]byte, payloadSize)
	for i := range b {
		b[i] = 'a' + byte(i%26)
	}
	return b
}

// manyBodies is how much memory bodies fill, more than the processor's caches:
// each message of a program has a body of its own.
const manyBodies = 64 << 20

// bodies returns payloads that are to be sent in turn.
func bodies() [][]byte {
	if len(ring) == 0 || len(ring[0]) != payloadSize {
		ring = make([][]byte, manyBodies/payloadSize)
		for i := range ring {
			ring[i] = payload()
		}
	}
	return ring
}

var ring [][]byte

func nothing() error { return nil }

func counted(got int64, n int) error {
	if got != int64(n) {
		return fmt.Errorf("%d of %d went through", got, n)
	}
	return nil
}

// parallel calls f n times from several goroutines.
func parallel(goroutines, n int, f func() error) error {
	var left atomic.Int64
	left.Store(int64(n))
	errs := make(chan error, goroutines)
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				if err := f(); err != nil {
					errs <- err
					return
				}
			}
		})
	}
	wg.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	return all
}

// set opens a contender at a place of its own for a run of n messages; done
// sees that the place holds left messages (less than 0: any number), closes the
// clients, and removes it. The clients go last, since some acknowledge late.
func set(ctx context.Context, at makePlace, with makeRig, n, left int) (rig, func() error, error) {
	p, err := at(ctx, n)
	if err != nil {
		return rig{}, nil, err
	}
	r, err := with(ctx, p)
	if err != nil {
		return rig{}, nil, errors.Join(err, p.remove(ctx))
	}
	return r, func() error {
		return errors.Join(p.holds(ctx, left), r.stop(), p.remove(ctx))
	}, nil
}

// holds waits for the place to hold n messages: some brokers count late.
func (p place) holds(ctx context.Context, n int) error {
	if p.held == nil || n < 0 || p.keeps && n == 0 {
		return nil
	}
	var got int64
	for range 100 {
		var err error
		if got, err = p.held(ctx); err != nil {
			return err
		}
		if got == int64(n) {
			return nil
		}
		<-time.After(50 * time.Millisecond)
	}
	return fmt.Errorf("%s holds %d messages instead of %d", p.name, got, n)
}

// filled makes a place with n messages for each run.
func filled(at makePlace, with makeRig) makePlace {
	return func(ctx context.Context, n int) (place, error) {
		p, err := at(ctx, n)
		if err != nil {
			return place{}, err
		}
		r, err := with(ctx, p)
		if err != nil {
			return place{}, errors.Join(err, p.remove(ctx))
		}
		return p, errors.Join(r.flood(ctx, n), r.stop(), p.holds(ctx, n))
	}
}

// share makes one place for all runs of a scenario: begin makes it, and at
// gives it to each of them.
func share(make makePlace) (begin func(context.Context, int) (func() error, error), at makePlace) {
	var shared place
	begin = func(ctx context.Context, n int) (func() error, error) {
		p, err := make(ctx, n)
		if err != nil {
			return nil, err
		}
		remove := p.remove
		shared = p
		shared.remove = func(context.Context) error { return nil }
		return func() error { return remove(ctx) }, nil
	}
	return begin, func(context.Context, int) (place, error) { return shared, nil }
}

// flooding sends n messages from one goroutine.
func flooding(at makePlace, with makeRig) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		r, done, err := set(ctx, at, with, n, n)
		if err != nil {
			return nil, nil, err
		}
		if r.flood == nil {
			r.flood = func(ctx context.Context, n int) error {
				return parallel(1, n, func() error { return r.send(ctx, payload()) })
			}
		}
		// The first message finds out what the clients have to know.
		if err := r.flood(ctx, 1); err != nil {
			return nil, nil, errors.Join(err, done())
		}
		return func() error { return r.flood(ctx, n-1) }, done, nil
	}
}

// sending makes a blocking call for each message from 64 goroutines.
func sending(at makePlace, with makeRig) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		r, done, err := set(ctx, at, with, n, n)
		if err != nil {
			return nil, nil, err
		}
		body := payload()
		if err := r.send(ctx, body); err != nil {
			return nil, nil, errors.Join(err, done())
		}
		return func() error {
			return parallel(goroutines, n-1, func() error { return r.send(ctx, body) })
		}, done, nil
	}
}

// reading takes the n messages that filled has put into a place. A queue is
// empty afterwards; a stream that runs share does not count.
func reading(filled makePlace, with makeRig) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		r, done, err := set(ctx, filled, with, n, 0)
		return func() error { return readAll(ctx, r, n) }, done, err
	}
}

func readAll(ctx context.Context, r rig, n int) error {
	got, bytes := 0, 0
	err := r.read(ctx, func(body []byte) bool {
		got++
		bytes += len(body)
		return got < n
	})
	if err == nil && (got < n || bytes != got*payloadSize) {
		err = fmt.Errorf("%d of %d messages, %d bytes", got, n, bytes)
	}
	return err
}

// flow runs publishers and readers, lanes of each, until n messages went
// through.
func flow(ctx context.Context, r rig, lanes, n int) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var got atomic.Int64
	errs := make(chan error, 2*lanes)
	var wg sync.WaitGroup
	for lane := range lanes {
		count := n / lanes
		if lane == 0 {
			count += n % lanes
		}
		wg.Go(func() {
			body := payload()
			for range count {
				if err := r.send(ctx, body); err != nil {
					errs <- err
					cancel()
					return
				}
			}
		})
		wg.Go(func() {
			err := r.read(ctx, func([]byte) bool {
				if got.Add(1) < int64(n) {
					return true
				}
				cancel()
				return false
			})
			if err != nil {
				errs <- err
				cancel()
			}
		})
	}
	wg.Wait()
	close(errs)
	var all error
	for err := range errs {
		all = errors.Join(all, err)
	}
	if all == nil {
		all = counted(min(got.Load(), int64(n)), n)
	}
	return all
}

// halfLoad finds out how much a contender takes when 64 goroutines send and
// one reads, and measures the time from when a message was due to its receipt
// at half of that.
func halfLoad(at makePlace, with makeRig) opener {
	return func(ctx context.Context, n int) (func() error, func() error, error) {
		r, remove, err := set(ctx, at, with, n, -1)
		if err != nil {
			return nil, nil, err
		}
		run, cancel := context.WithCancel(ctx)
		m := meter{start: time.Now(), n: n, warm: make(chan struct{}), full: make(chan struct{}), half: make(chan struct{})}
		reader := make(chan error, 1)
		go func() { reader <- r.read(run, m.saw) }()
		done := func() error {
			cancel()
			return errors.Join(<-reader, remove())
		}
		phase := func(n int, every time.Duration, seen <-chan struct{}) error {
			var next atomic.Int64
			begin := time.Since(m.start)
			err := parallel(goroutines, n, func() error {
				due := begin + time.Duration(next.Add(1))*every
				time.Sleep(due - time.Since(m.start))
				return r.send(ctx, stamped(due))
			})
			if err != nil {
				return err
			}
			select {
			case <-seen:
				return nil
			case <-time.After(time.Minute):
				return fmt.Errorf("%d messages arrived, then none for a minute", m.got)
			}
		}
		if err := phase(1, 0, m.warm); err != nil {
			return nil, nil, errors.Join(err, done())
		}
		full := time.Now()
		if err := phase(n, 0, m.full); err != nil {
			return nil, nil, errors.Join(err, done())
		}
		every := 2 * time.Since(full) / time.Duration(n)
		return func() error {
			err := phase(n, every, m.half)
			latencies = append(latencies, m.late...)
			return err
		}, done, nil
	}
}

// A meter counts what one reader sees: a message that warms up, n at full
// load, and n at half of it, whose delays it keeps.
type meter struct {
	start            time.Time
	n, got           int
	late             []time.Duration
	warm, full, half chan struct{}
}

func (m *meter) saw(body []byte) bool {
	switch m.got++; m.got {
	case 1:
		close(m.warm)
	case 1 + m.n:
		close(m.full)
	case 1 + 2*m.n:
		defer close(m.half)
	}
	if m.got > 1+m.n && m.got <= 1+2*m.n {
		due, err := strconv.ParseInt(string(body[:stampDigits]), 10, 64)
		if err != nil {
			panic(err) // a body that no contender has sent
		}
		m.late = append(m.late, time.Since(m.start)-time.Duration(due))
	}
	return true
}

const stampDigits = 20

// stamped is a payload that begins with the time when it is due.
func stamped(due time.Duration) []byte {
	body := payload()
	copy(body, fmt.Sprintf("%0*d", stampDigits, due))
	return body
}

// sized is a scenario with other bodies, for its first two contenders.
func sized(s scenario, label string, size, messages int) scenario {
	s.name += ", " + label
	s.size, s.messages = size, messages
	s.contenders = s.contenders[:2]
	var ts []target
	for _, t := range s.targets {
		if t.of == s.contenders[1].name && t.over == s.contenders[0].name && t.atLeast > 0 {
			ts = append(ts, t)
		}
	}
	s.targets = ts
	return s
}
