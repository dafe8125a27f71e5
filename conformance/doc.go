// Package conformance finds out what the delivery, ordering, replay and dedup
// semantics of a broker really are, through the interfaces of package broker.
//
// An adapter's test hands it a [Harness], a struct of functions:
//
//	func TestConformance(t *testing.T) {
//		conformance.Run(t, conformance.Harness{
//			Name:  "memory",
//			Kinds: conformance.Queue | conformance.Stream,
//			Open: func(ctx context.Context) (broker.Broker, error) {
//				return memory.Open(ctx, nil)
//			},
//		})
//	}
//
// A program calls [Check] instead, which needs no package testing; the command
// conformance/cmd/conformance runs it on any broker by its URL. Both return a
// [Report], data from which the guarantee matrix is generated.
//
// The suite is an ordered table of cases ([Cases]), each with a number, the rule
// that it checks in words, and the rule's source. It works in both directions:
// a capability that a handle claims must work, and one that it does not claim
// must answer [broker.ErrUnsupported]; such a case ends as [StatusRefused]. A
// case that cannot run says why ([StatusSkip]); a known difference between an
// emulator and the real product is named in [Harness].Expected with its reason
// and is listed as [StatusExpected]. None of this is silent.
//
// Cases record what they do in a history ([QueueHistory], [StreamHistory]), and
// pure functions ([CheckQueue], [CheckStream]) judge it afterwards. A call whose
// outcome is unknown counts as such, never as a failure.
//
// Every random choice comes from a seed, which is printed and kept in the
// report; CONFORMANCE_SEED, or the flag that [SeedFlag] defines, repeats a run. One node proves nothing of
// replication, and a killed process proves nothing of fsync.
package conformance
