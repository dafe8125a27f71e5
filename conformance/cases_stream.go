package conformance

import "maps"

// streamCases returns the stream's half of every case by ID.
func streamCases() map[int]StreamCase {
	all := map[int]StreamCase{}
	for _, group := range []map[int]StreamCase{
		streamDelivery, streamOrder, streamReplay, streamCommit, streamGroups, streamRetention,
		streamTransactions, streamPressure, streamLife, streamInput, streamFaults,
	} {
		maps.Copy(all, group)
	}
	return all
}
