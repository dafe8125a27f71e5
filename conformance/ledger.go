package conformance

import (
	"fmt"
	"strconv"
	"strings"
	"sync"
)

// A ledger keeps which of many numbered messages were delivered, a byte each,
// where a history would be too large.
type ledger struct {
	mu       sync.Mutex
	seen     []bool
	left     int
	repeated int
}

func (l *ledger) reset(n int) { l.seen, l.left = make([]bool, n), n }

// mark notes that the message with that number was delivered.
func (l *ledger) mark(number string) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	n, err := strconv.Atoi(number)
	switch {
	case err != nil || n < 0 || n >= len(l.seen):
		return fmt.Errorf("%.40q was delivered and never published", number)
	case l.seen[n]:
		l.repeated++
	default:
		l.seen[n] = true
		l.left--
	}
	return nil
}

func (l *ledger) complete() bool { return l.missing() == 0 }

func (l *ledger) missing() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.left
}

// indexOf returns the number of a group named g7, or -1.
func indexOf(group string) int {
	n, err := strconv.Atoi(strings.TrimPrefix(group, "g"))
	if err != nil {
		return -1
	}
	return n
}
