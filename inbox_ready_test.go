package broker

import "testing"

func TestInboxReadyLeavesOutWhatWaitsForItsGroup(t *testing.T) {
	b := NewInbox(nil)
	d := func(group string) *Delivery { return &Delivery{Message: Message{GroupID: group}} }
	first := d("a")
	b.Put(first, d("a"), d("a"), d("b"), d(""))
	if ready, all := b.Ready(), b.Len(); ready != 3 || all != 5 {
		t.Fatalf("ready %d of %d, want 3 of 5", ready, all)
	}
	if _, err := b.Receive(t.Context(), 3); err != nil {
		t.Fatal(err)
	}
	if ready, all := b.Ready(), b.Len(); ready != 0 || all != 2 {
		t.Fatalf("ready %d of %d, want 0 of 2", ready, all)
	}
	b.Done(first)
	if ready, all := b.Ready(), b.Len(); ready != 1 || all != 2 {
		t.Fatalf("ready %d of %d, want 1 of 2", ready, all)
	}
}
