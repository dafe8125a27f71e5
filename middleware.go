package broker

import (
	"context"
	"log/slog"
	"time"

	"golang.org/x/time/rate"
)

// Recover turns a panic further in into a *PanicError. The loops recover
// panics anyway; this lets the middlewares outside it see them as errors.
func Recover() Middleware {
	return func(next HandlerFunc) HandlerFunc {
		return func(ctx context.Context, in Incoming) (err error) {
			defer recovered(&err)
			return next(ctx, in)
		}
	}
}

// Timeout ends the ctx of what is further in after d, with cause
// context.DeadlineExceeded. It waits for the handler to return: a handler that
// ignores its ctx takes as long as it takes.
func Timeout(d time.Duration) Middleware {
	return func(next HandlerFunc) HandlerFunc {
		return func(ctx context.Context, in Incoming) error {
			ctx, cancel := context.WithTimeout(ctx, d)
			defer cancel()
			return next(ctx, in)
		}
	}
}

// Logging logs each call with its duration: at level Info, or Warn with an
// error. A nil logger is slog.Default().
func Logging(log *slog.Logger) Middleware {
	if log == nil {
		log = slog.Default()
	}
	return func(next HandlerFunc) HandlerFunc {
		return func(ctx context.Context, in Incoming) error {
			began := time.Now()
			err := next(ctx, in)
			level := slog.LevelInfo
			if err != nil {
				level = slog.LevelWarn
			}
			if !log.Enabled(ctx, level) {
				return err
			}
			info := in.Info()
			attrs := []slog.Attr{
				slog.String("source", info.Source), slog.String("id", info.ID), slog.String("key", info.Key),
				slog.Int("attempt", info.Attempt), slog.Int("bytes", len(in.Payload())),
				slog.Duration("took", time.Since(began)),
			}
			if err != nil {
				attrs = append(attrs, slog.String("error", err.Error()))
			}
			log.LogAttrs(ctx, level, "handled", attrs...)
			return err
		}
	}
}

// RateLimit lets perSecond calls start a second, over all loops that share the
// Middleware; bursts are what 10 ms allow, at least 1. Worker.RateLimit limits
// one worker before it receives, and so holds fewer deliveries. A call that has
// no turn before its ctx ends is put off ([Snooze]). A perSecond of 0 or less is
// no limit.
func RateLimit(perSecond float64) Middleware {
	limiter := newLimiter(perSecond)
	return func(next HandlerFunc) HandlerFunc {
		return func(ctx context.Context, in Incoming) error {
			turn := limiter.Reserve()
			wait := turn.Delay()
			if end, ok := ctx.Deadline(); ok && wait > 0 && time.Until(end) <= wait {
				turn.Cancel()
				return Snooze(wait)
			}
			if !sleep(ctx, wait) {
				turn.Cancel()
				return ContextError(ctx)
			}
			return next(ctx, in)
		}
	}
}

// newLimiter allows bursts of 10 ms, so that high rates are within reach of the
// timer.
func newLimiter(perSecond float64) *rate.Limiter {
	if perSecond <= 0 {
		return rate.NewLimiter(rate.Inf, 1)
	}
	return rate.NewLimiter(rate.Limit(perSecond), max(1, int(min(perSecond/100, 1e6))))
}
