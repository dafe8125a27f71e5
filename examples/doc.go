// Package examples shows one use a file, on the embedded broker; each is a
// test whose output is checked. examples/hybrid is the whole story in one
// program, examples/try the workers of the Compose file, examples/copy copies a
// Kafka stream exactly once while copiers are killed.
package examples
