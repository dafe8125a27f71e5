// Package handles keeps what a broker has opened and has to close with itself.
package handles

import (
	"errors"
	"sync"

	"github.com/queuestream/broker"
)

// A Set knows the open handles of one broker. The zero value is empty and open.
// It is safe for concurrent use and calls no handle with its lock held.
type Set[H comparable] struct {
	mu     sync.Mutex
	ended  bool
	opened map[H]struct{}
}

// Add keeps h until Remove. Once the set has ended it returns broker.ErrClosed,
// and h is the caller's to close.
func (s *Set[H]) Add(h H) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return broker.ErrClosed
	}
	if s.opened == nil {
		s.opened = map[H]struct{}{}
	}
	s.opened[h] = struct{}{}
	return nil
}

// Remove forgets h, which closes by itself. It may be called again.
func (s *Set[H]) Remove(h H) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.opened, h)
}

// Err returns broker.ErrClosed once the set has ended.
func (s *Set[H]) Err() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ended {
		return broker.ErrClosed
	}
	return nil
}

// All returns the open handles, in no order.
func (s *Set[H]) All() []H {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.all()
}

// End refuses further handles and returns those that are open. It may be called
// again: it then returns those that are still closing.
func (s *Set[H]) End() []H {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ended = true
	return s.all()
}

func (s *Set[H]) all() []H {
	hs := make([]H, 0, len(s.opened))
	for h := range s.opened {
		hs = append(hs, h)
	}
	return hs
}

// Each runs do for all of hs at once, waits, and joins the errors.
func Each[H any](hs []H, do func(H) error) error {
	errs := make([]error, len(hs))
	var wg sync.WaitGroup
	for i, h := range hs {
		wg.Go(func() { errs[i] = do(h) })
	}
	wg.Wait()
	return errors.Join(errs...)
}
