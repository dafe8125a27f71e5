package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/pprof"
	"sync/atomic"
	"time"

	"github.com/queuestream/broker/bridge"
)

const pingTimeout = 2 * time.Second

// handlers answer the worker's HTTP requests.
type handlers struct {
	set      *bridge.Set
	metrics  *metrics
	draining atomic.Bool
}

func (h *handlers) publicMux() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /livez", func(w http.ResponseWriter, _ *http.Request) { reply(w, http.StatusOK, "ok") })
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, r *http.Request) {
		if err := h.ready(r.Context()); err != nil {
			reply(w, http.StatusServiceUnavailable, err.Error())
			return
		}
		reply(w, http.StatusOK, "ok")
	})
	mux.Handle("GET /metrics", h.metrics.handler())
	return mux
}

// ready tells why the worker cannot do its work right now.
func (h *handlers) ready(ctx context.Context) error {
	if h.draining.Load() {
		return fmt.Errorf("draining")
	}
	for _, rt := range h.set.Routes {
		if s := rt.Stats(); s.Halted != nil {
			return s.Halted
		}
	}
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	return pingAll(ctx, h.set.Brokers())
}

// adminMux serves what changes or inspects routes; it is bound to loopback by
// default, since it asks for no credentials.
func (h *handlers) adminMux(withPprof bool) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /routes", func(w http.ResponseWriter, _ *http.Request) {
		out := make([]routeStatus, len(h.set.Routes))
		for i, rt := range h.set.Routes {
			out[i] = status(rt)
		}
		replyJSON(w, out)
	})
	mux.HandleFunc("GET /routes/{route}", h.withRoute(func(w http.ResponseWriter, _ *http.Request, rt *bridge.Route) {
		replyJSON(w, status(rt))
	}))
	mux.HandleFunc("POST /routes/{route}/pause", h.withRoute(func(w http.ResponseWriter, _ *http.Request, rt *bridge.Route) {
		rt.Pause()
		replyJSON(w, status(rt))
	}))
	mux.HandleFunc("POST /routes/{route}/resume", h.withRoute(func(w http.ResponseWriter, _ *http.Request, rt *bridge.Route) {
		rt.Resume()
		replyJSON(w, status(rt))
	}))
	mux.HandleFunc("GET /routes/{route}/lag", h.withRoute(func(w http.ResponseWriter, r *http.Request, rt *bridge.Route) {
		lag, err := rt.Lag(r.Context())
		if err != nil {
			reply(w, http.StatusBadGateway, err.Error())
			return
		}
		out := make([]partitionLag, len(lag))
		for i, l := range lag {
			out[i] = partitionLag{Partition: l.Partition, Next: l.Next.String(), Lag: l.Lag}
			if l.HasCommit {
				out[i].Committed = l.Committed.String()
			}
		}
		replyJSON(w, out)
	}))
	if withPprof {
		mux.HandleFunc("/debug/pprof/", pprof.Index)
		mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	}
	return mux
}

func (h *handlers) withRoute(f func(http.ResponseWriter, *http.Request, *bridge.Route)) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		for _, rt := range h.set.Routes {
			if rt.Name == r.PathValue("route") {
				f(w, r, rt)
				return
			}
		}
		reply(w, http.StatusNotFound, fmt.Sprintf("no route %q", r.PathValue("route")))
	}
}

type partitionLag struct {
	Partition int32  `json:"partition"`
	Committed string `json:"committed,omitempty"`
	Next      string `json:"next"`
	Lag       int64  `json:"lag"`
}

type routeStatus struct {
	Route            string  `json:"route"`
	Source           string  `json:"source"`
	Paused           bool    `json:"paused"`
	Halted           string  `json:"halted,omitempty"`
	In               int64   `json:"in"`
	Enqueued         int64   `json:"enqueued"`
	Filtered         int64   `json:"filtered"`
	Parked           int64   `json:"parked"`
	Skipped          int64   `json:"skipped"`
	Retried          int64   `json:"retried"`
	Duplicates       int64   `json:"duplicates_avoided"`
	WindowRecords    int     `json:"window_records"`
	WindowAgeSeconds float64 `json:"window_age_seconds"`
}

func status(rt *bridge.Route) routeStatus {
	s := rt.Stats()
	out := routeStatus{
		Route: rt.Name, Source: rt.Source.Name(), Paused: s.Paused,
		In: s.In, Enqueued: s.Enqueued, Filtered: s.Filtered, Parked: s.Parked, Skipped: s.Skipped,
		Retried: s.Retried, Duplicates: s.Duplicates,
		WindowRecords: s.WindowRecords, WindowAgeSeconds: s.WindowAge.Seconds(),
	}
	if s.Halted != nil {
		out.Halted = s.Halted.Error()
	}
	return out
}

func reply(w http.ResponseWriter, code int, text string) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.WriteHeader(code)
	fmt.Fprintln(w, text) //nolint:errcheck,gosec // the client may have gone; it is plain text
}

func replyJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	enc.Encode(v) //nolint:errcheck,errchkjson // the client has gone
}
