package faultproxy_test

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"testing"
	"time"

	"go.uber.org/goleak"

	"github.com/queuestream/broker/conformance"
	"github.com/queuestream/broker/conformance/faultproxy"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m, faultproxy.Leftovers()...) }

// A link is a connection through a proxy to a server that echoes.
type link struct {
	t    *testing.T
	p    *faultproxy.Proxy
	conn net.Conn
}

func newLink(t *testing.T) *link {
	var lc net.ListenConfig
	l, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	check(t, err)
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				_, err := io.Copy(c, c)
				if cerr := c.Close(); err == nil && cerr != nil {
					t.Log(cerr)
				}
			}()
		}
	}()
	k := &link{t: t, p: faultproxy.New(t, "127.0.0.1:0", l.Addr().String())}
	t.Cleanup(func() { check(t, l.Close()) })
	k.dial()
	return k
}

func check(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func (k *link) dial() {
	k.t.Helper()
	var d net.Dialer
	conn, err := d.DialContext(k.t.Context(), "tcp", k.p.Addr())
	check(k.t, err)
	k.conn = conn
	k.t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			k.t.Error(err)
		}
	})
}

// echo sends a byte and returns how long its answer took, waiting at most d.
func (k *link) echo(d time.Duration) (time.Duration, error) {
	k.t.Helper()
	begin := time.Now()
	check(k.t, k.conn.SetDeadline(begin.Add(d)))
	if _, err := k.conn.Write([]byte{1}); err != nil {
		return 0, err
	}
	_, err := io.ReadFull(k.conn, make([]byte, 1))
	return time.Since(begin), err
}

func (k *link) works() {
	k.t.Helper()
	_, err := k.echo(10 * time.Second)
	check(k.t, err)
}

func TestCutBreaksConnectionsAndTakesNewOnes(t *testing.T) {
	for name, cut := range map[string]func(*faultproxy.Proxy){
		"cut":          (*faultproxy.Proxy).Cut,
		"lose answers": (*faultproxy.Proxy).LoseAnswers,
	} {
		t.Run(name, func(t *testing.T) {
			k := newLink(t)
			k.works()
			cut(k.p)
			if _, err := k.echo(10 * time.Second); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("the connection from before: %v, want it broken", err)
			}
			k.dial()
			k.works()
		})
	}
}

func TestDownRefusesConnections(t *testing.T) {
	k := newLink(t)
	k.p.Down()
	var d net.Dialer
	if conn, err := d.DialContext(t.Context(), "tcp", k.p.Addr()); err == nil {
		t.Error("connected", conn.Close())
	}
	k.p.Up()
	k.dial()
	k.works()
}

func TestBlackHoleDropsAndClosesNothing(t *testing.T) {
	k := newLink(t)
	k.works()
	end := k.p.BlackHole()
	if _, err := k.echo(100 * time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%v, want no answer", err)
	}
	end()
	k.dial()
	k.works()
}

func TestSlowLinkDelays(t *testing.T) {
	k := newLink(t)
	defer k.p.SlowLink()()
	if d, err := k.echo(10 * time.Second); err != nil || d < 10*time.Millisecond {
		t.Errorf("answered in %v, %v, want 10 ms at least", d, err)
	}
}

// Every fault bites, and once it is stopped the link works.
func TestFaults(t *testing.T) {
	k := newLink(t)
	faults := faultproxy.Faults(k.p)
	down := faultproxy.Away(
		func(context.Context) error { k.p.Down(); return nil }, 50*time.Millisecond,
		func(context.Context) error { k.p.Up(); return nil })
	faults[conformance.FaultKill] = down
	for kind, inject := range faults {
		in, err := inject(t.Context())
		check(t, err)
		quiet := kind == conformance.FaultBlackHole || kind == conformance.FaultSlowLink
		if quiet && in.Bites() != 0 {
			t.Errorf("%s bit %d times, and nothing was sent", kind, in.Bites())
		}
		for tick := time.Tick(time.Millisecond); in.Bites() == 0; <-tick {
			check(t, t.Context().Err())
			if quiet {
				_, _ = k.echo(50 * time.Millisecond) // whatever comes of it
			}
		}
		check(t, in.Stop(t.Context()))
		t.Log(kind)
		k.dial()
		k.works()
	}
}
