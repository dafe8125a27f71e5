package broker

import "slices"

// OnWait has f called, outside all locks, whenever a Receive has found nothing
// and waits: for adapters that fetch on demand. It is called before the first
// Receive.
func (b *Inbox) OnWait(f func()) { b.onWait = f }

// Demand returns how many deliveries the waiting Receives have asked for that
// get none of those that are ready now. What is fetched beyond that may find
// nobody who wants it.
func (b *Inbox) Demand() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	ready, demand := len(b.ready)-b.head, 0
	for _, n := range b.wants {
		if ready == 0 {
			demand += n
		}
		ready -= min(n, ready)
	}
	return demand
}

// want notes that a Receive of n begins to wait, or does so no longer.
func (b *Inbox) want(n int, before, now bool) {
	switch i := slices.Index(b.wants, n); {
	case before == now:
	case now:
		b.wants = append(b.wants, n)
	case i >= 0:
		b.wants = slices.Delete(b.wants, i, i+1)
	}
}

// drop removes what is ready and expired, and returns what waited behind it.
func (b *Inbox) drop() []*Delivery {
	var back []*Delivery
	kept := b.ready[:b.head]
	for _, d := range b.ready[b.head:] {
		if expired(d) {
			back = append(back, b.undo(d)...)
		} else {
			kept = append(kept, d)
		}
	}
	if len(kept) < len(b.ready) {
		clear(b.ready[len(kept):])
		b.ready = kept
		b.shrunk()
	}
	return back
}
