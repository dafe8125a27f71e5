// Command benchmarks measures this SDK beside the raw clients, Watermill and Go
// CDK, in one run on one machine: contenders are interleaved and repeated, and
// what is compared are medians and ratios.
//
//	make bench                                  # all, on brokers that it starts
//	go -C benchmarks run . -run memory          # some
//	go -C benchmarks run . -out RESULTS.md      # writes the report
//
// Brokers are found in BROKER_TEST_KAFKA, BROKER_TEST_RABBITMQ and
// BROKER_TEST_SQS; scenarios whose broker is missing are named and left out.
package main
