package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/queuestream/broker"
	"github.com/queuestream/broker/bridge"
)

const (
	defaultListen      = ":8080"
	defaultAdminListen = "127.0.0.1:8081"
	adminOff           = "off"
	shutdownTimeout    = 10 * time.Second
)

type runCmd struct {
	configFlag
}

// Run runs the worker until ctx ends.
func (c *runCmd) Run(ctx context.Context, e env) error {
	cfg, err := c.load()
	if err != nil {
		return err
	}
	log, err := newLogger(e, cfg.Worker.LogLevel)
	if err != nil {
		return err
	}
	tracing, err := newTracing(ctx, cfg.Worker.OTLPEndpoint, log)
	if err != nil {
		return fmt.Errorf("tracing: %w", err)
	}
	set, err := build(ctx, cfg, e)
	if errors.Is(err, context.Canceled) && ctx.Err() != nil {
		log.Info("the bridge ended before it ran")
		return tracing.close()
	}
	if err != nil {
		return errors.Join(err, tracing.close())
	}
	m := newMetrics(set.Routes)
	for _, rt := range set.Routes {
		rt.Logger = log
		rt.Observe = m.observe
		rt.Middleware = append(rt.Middleware, tracing.middleware(rt.Name)...)
	}
	srv, err := startServers(ctx, cfg.Worker, set, m, log)
	if err != nil {
		return errors.Join(err, set.Close(), tracing.close())
	}
	log.Info("the bridge runs", "version", version(), "routes", len(set.Routes), "listen", srv.addr)
	context.AfterFunc(ctx, func() { srv.draining.Store(true) })
	err = set.Run(ctx)
	srv.draining.Store(true)
	stop, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
	defer cancel()
	err = errors.Join(err, set.Shutdown(stop), tracing.close(), srv.shutdown(stop))
	log.Info("the bridge ended", "error", err)
	return err
}

// servers are the worker's HTTP endpoints.
type servers struct {
	public, admin *http.Server
	addr          string
	handlers
}

func startServers(ctx context.Context, c bridge.WorkerConfig, set *bridge.Set, m *metrics, log *slog.Logger) (*servers, error) {
	s := &servers{handlers: handlers{set: set, metrics: m}}
	var err error
	if s.public, s.addr, err = listen(ctx, orDefault(c.Listen, defaultListen), s.publicMux(), log); err != nil {
		return nil, err
	}
	if addr := orDefault(c.AdminListen, defaultAdminListen); addr != adminOff {
		if s.admin, _, err = listen(ctx, addr, s.adminMux(c.Pprof), log); err != nil {
			return nil, errors.Join(err, s.public.Close())
		}
	}
	return s, nil
}

func listen(ctx context.Context, addr string, h http.Handler, log *slog.Logger) (*http.Server, string, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		return nil, "", err
	}
	srv := &http.Server{Handler: h, ReadHeaderTimeout: 5 * time.Second}
	go func() {
		if err := srv.Serve(l); !errors.Is(err, http.ErrServerClosed) {
			log.Error("the HTTP server failed", "addr", addr, "error", err)
		}
	}()
	return srv, l.Addr().String(), nil
}

// shutdown waits for requests under way until ctx ends, and cuts off the rest (a
// profile being taken, say): that is no failure of the worker's.
func (s *servers) shutdown(ctx context.Context) error {
	var errs error
	for _, srv := range []*http.Server{s.public, s.admin} {
		if srv != nil && srv.Shutdown(ctx) != nil {
			errs = errors.Join(errs, srv.Close())
		}
	}
	return errs
}

func orDefault(s, def string) string {
	if s == "" {
		return def
	}
	return s
}

// pingAll reaches every broker, and names the first that does not answer.
func pingAll(ctx context.Context, brokers map[string]broker.Broker) error {
	for name, b := range brokers {
		if err := b.Ping(ctx); err != nil {
			return fmt.Errorf("broker %s: %w", name, err)
		}
	}
	return nil
}
