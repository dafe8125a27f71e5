package kafka

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"os"

	"github.com/queuestream/broker"
	"github.com/twmb/franz-go/pkg/kadm"
	"github.com/twmb/franz-go/pkg/kerr"
	"github.com/twmb/franz-go/pkg/kgo"
)

const adapter = "kafka"

// fail wraps err for the caller: what was done, on which name, and whether
// trying again may help. nil stays nil.
func fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if e, ok := errors.AsType[*broker.Error](err); ok && e.Op == op && e.Name == name {
		return err
	}
	err = classify(err)
	return &broker.Error{Op: op, Adapter: adapter, Name: name, Temporary: temporary(err), Err: err}
}

var sentinels = map[int16]error{
	kerr.UnknownTopicOrPartition.Code:            broker.ErrNotFound,
	kerr.UnknownTopicID.Code:                     broker.ErrNotFound,
	kerr.GroupIDNotFound.Code:                    broker.ErrNotFound,
	kerr.InvalidTopicException.Code:              broker.ErrInvalid,
	kerr.InvalidGroupID.Code:                     broker.ErrInvalid,
	kerr.InvalidPartitions.Code:                  broker.ErrInvalid,
	kerr.InvalidReplicationFactor.Code:           broker.ErrInvalid,
	kerr.InvalidConfig.Code:                      broker.ErrInvalid,
	kerr.InvalidTimestamp.Code:                   broker.ErrInvalid,
	kerr.InvalidRecord.Code:                      broker.ErrInvalid,
	kerr.InvalidRequest.Code:                     broker.ErrInvalid,
	kerr.PolicyViolation.Code:                    broker.ErrInvalid,
	kerr.InvalidTransactionTimeout.Code:          broker.ErrInvalid,
	kerr.TopicAuthorizationFailed.Code:           broker.ErrUnauthorized,
	kerr.GroupAuthorizationFailed.Code:           broker.ErrUnauthorized,
	kerr.ClusterAuthorizationFailed.Code:         broker.ErrUnauthorized,
	kerr.TransactionalIDAuthorizationFailed.Code: broker.ErrUnauthorized,
	kerr.SaslAuthenticationFailed.Code:           broker.ErrUnauthorized,
	kerr.UnsupportedSaslMechanism.Code:           broker.ErrUnauthorized,
	kerr.IllegalSaslState.Code:                   broker.ErrUnauthorized,
	kerr.MessageTooLarge.Code:                    broker.ErrTooLarge,
	kerr.RecordListTooLarge.Code:                 broker.ErrTooLarge,
	kerr.OffsetOutOfRange.Code:                   broker.ErrOutOfRange,
	kerr.IllegalGeneration.Code:                  broker.ErrFenced,
	kerr.UnknownMemberID.Code:                    broker.ErrFenced,
	kerr.FencedInstanceID.Code:                   broker.ErrFenced,
	kerr.FencedMemberEpoch.Code:                  broker.ErrFenced,
	kerr.StaleMemberEpoch.Code:                   broker.ErrFenced,
	kerr.InvalidProducerEpoch.Code:               broker.ErrFenced,
	kerr.InvalidTxnState.Code:                    broker.ErrFenced,
	kerr.InvalidProducerIDMapping.Code:           broker.ErrFenced,
	kerr.ProducerFenced.Code:                     broker.ErrFenced,
	kerr.TransactionCoordinatorFenced.Code:       broker.ErrFenced,
	kerr.TopicAlreadyExists.Code:                 broker.ErrConflict,
	kerr.NonEmptyGroup.Code:                      broker.ErrConflict,
	kerr.GroupSubscribedToTopic.Code:             broker.ErrConflict,
	kerr.UnsupportedVersion.Code:                 broker.ErrUnsupported,
	kerr.InvalidRecordState.Code:                 broker.ErrLeaseLost,
}

// classify adds the sentinel that err stands for.
func classify(err error) error {
	if known(err) {
		return err
	}
	if ke, ok := errors.AsType[*kerr.Error](err); ok {
		if s, ok := sentinels[ke.Code]; ok {
			return fmt.Errorf("%w: %w", s, err)
		}
		return err
	}
	switch {
	case errors.Is(err, kgo.ErrClientClosed):
		return fmt.Errorf("%w: %w", broker.ErrClosed, err)
	case unreachable(err):
		return fmt.Errorf("%w: %w", broker.ErrUnavailable, err)
	}
	return err
}

// known tells whether err already wraps a sentinel, or the end of a context.
func known(err error) bool {
	for _, s := range []error{
		broker.ErrClosed, broker.ErrNotFound, broker.ErrConflict, broker.ErrInvalid, broker.ErrUnauthorized,
		broker.ErrSettled, broker.ErrLeaseLost, broker.ErrFenced, broker.ErrOutOfRange, broker.ErrTooLarge,
		broker.ErrFull, broker.ErrUnavailable, broker.ErrUnknownOutcome, broker.ErrTxAborted, broker.ErrShutdown,
		broker.ErrUnsupported, context.Canceled,
	} {
		if errors.Is(err, s) {
			return true
		}
	}
	// A dial that timed out wraps context.DeadlineExceeded as well.
	return errors.Is(err, context.DeadlineExceeded) && !unreachable(err)
}

// unreachable tells whether the broker could not be reached, or went away.
func unreachable(err error) bool {
	if _, ok := errors.AsType[*net.OpError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*net.DNSError](err); ok {
		return true
	}
	if _, ok := errors.AsType[*os.SyscallError](err); ok {
		return true
	}
	return errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, net.ErrClosed)
}

// temporary tells whether the same call may succeed later.
func temporary(err error) bool {
	if errors.Is(err, broker.ErrUnavailable) {
		return true
	}
	if errors.Is(err, broker.ErrNotFound) || errors.Is(err, broker.ErrClosed) || errors.Is(err, broker.ErrFenced) {
		return false
	}
	return kerr.IsRetriable(err)
}

// authError makes an error of kadm, which wraps what was denied, plain.
func authError(err error) error {
	if ae, ok := errors.AsType[*kadm.AuthError](err); ok {
		return fmt.Errorf("%w: %w", broker.ErrUnauthorized, ae.Err)
	}
	return err
}

// bounded adds the end of ctx to an error that came of it.
func bounded(ctx context.Context, err error) error {
	if err == nil {
		return nil
	}
	if ce := broker.ContextError(ctx); ce != nil {
		if errors.Is(err, ctx.Err()) {
			return ce
		}
		return fmt.Errorf("%w: %w", ce, err)
	}
	return err
}

func isUnauthorized(err error) bool { return errors.Is(err, broker.ErrUnauthorized) }

func isOutOfRange(err error) bool { return errors.Is(classify(err), broker.ErrOutOfRange) }
