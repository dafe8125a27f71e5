package memory

import (
	"runtime"
	"sync"
)

// A mutex is a sync.Mutex for what is held for less time than parking takes:
// Lock tries again for about that long first, then lets others run who may have
// something to do meanwhile.
type mutex struct {
	_  cacheLine // who tries again does not disturb who writes beside it
	mu sync.Mutex
	_  cacheLine
}

const (
	lockTries  = 2 // with lockPause: as long as others hold it, mostly
	lockPause  = 30
	lockYields = 20
)

func (m *mutex) Lock() {
	if !m.mu.TryLock() {
		m.lockSlow()
	}
}

func (m *mutex) Unlock() { m.mu.Unlock() }

func (m *mutex) lockSlow() {
	for range lockTries {
		pause(lockPause)
		if m.mu.TryLock() {
			return
		}
	}
	for range lockYields {
		runtime.Gosched()
		if m.mu.TryLock() {
			return
		}
	}
	m.mu.Lock()
}

// pause does nothing for a few nanoseconds.
//
//go:noinline
func pause(n int) {
	for range n {
	}
}
