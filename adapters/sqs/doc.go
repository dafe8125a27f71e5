// Package sqs implements broker.Queue on Amazon SQS.
package sqs
