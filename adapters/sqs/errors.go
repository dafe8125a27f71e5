package sqs

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"strings"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/smithy-go"
	smithyhttp "github.com/aws/smithy-go/transport/http"

	"github.com/queuestream/broker"
)

const adapterName = "sqs"

// A failure is a request's or an entry's error, judged.
type failure struct {
	kind  error // a sentinel of package broker, or nil
	err   error // the service's or the client's own
	retry bool  // the same request may succeed later
	maybe bool  // the request may have been carried out
}

func (f *failure) Error() string { return f.cause().Error() }

func (f *failure) Unwrap() error { return f.cause() }

func (f *failure) cause() error {
	switch {
	case f.kind == nil:
		return f.err
	case f.err == nil:
		return f.kind
	}
	return fmt.Errorf("%w: %w", f.kind, f.err)
}

// codes are the error codes of SQS, SNS, STS and AWS's common ones, by
// https://docs.aws.amazon.com/AWSSimpleQueueService/latest/APIReference/CommonErrors.html
// and the operations' pages.
var codes = map[string]failure{
	"QueueDoesNotExist":         {kind: broker.ErrNotFound},
	"NonExistentQueue":          {kind: broker.ErrNotFound},
	"InvalidAddress":            {kind: broker.ErrNotFound}, // the queue's URL, not the message
	"NotFound":                  {kind: broker.ErrNotFound},
	"NotFoundException":         {kind: broker.ErrNotFound},
	"ResourceNotFoundException": {kind: broker.ErrNotFound},
	"QueueNameExists":           {kind: broker.ErrConflict},
	"QueueAlreadyExists":        {kind: broker.ErrConflict},

	"AccessDenied":                        {kind: broker.ErrUnauthorized},
	"AccessDeniedException":               {kind: broker.ErrUnauthorized},
	"AuthorizationError":                  {kind: broker.ErrUnauthorized},
	"AuthorizationErrorException":         {kind: broker.ErrUnauthorized},
	"ExpiredToken":                        {kind: broker.ErrUnauthorized},
	"ExpiredTokenException":               {kind: broker.ErrUnauthorized},
	"IncompleteSignature":                 {kind: broker.ErrUnauthorized},
	"InvalidAccessKeyId":                  {kind: broker.ErrUnauthorized},
	"InvalidClientTokenId":                {kind: broker.ErrUnauthorized},
	"InvalidSecurity":                     {kind: broker.ErrUnauthorized},
	"InvalidSignatureException":           {kind: broker.ErrUnauthorized},
	"MissingAuthenticationToken":          {kind: broker.ErrUnauthorized},
	"NotAuthorized":                       {kind: broker.ErrUnauthorized},
	"OptInRequired":                       {kind: broker.ErrUnauthorized},
	"SignatureDoesNotMatch":               {kind: broker.ErrUnauthorized},
	"UnauthorizedOperation":               {kind: broker.ErrUnauthorized},
	"UnrecognizedClientException":         {kind: broker.ErrUnauthorized},
	"MissingAuthenticationTokenException": {kind: broker.ErrUnauthorized},

	"InvalidAttributeName":      {kind: broker.ErrInvalid},
	"InvalidAttributeValue":     {kind: broker.ErrInvalid},
	"InvalidIdFormat":           {kind: broker.ErrInvalid},
	"InvalidMessageContents":    {kind: broker.ErrInvalid},
	"InvalidParameter":          {kind: broker.ErrInvalid},
	"InvalidParameterException": {kind: broker.ErrInvalid},
	"InvalidParameterValue":     {kind: broker.ErrInvalid},
	"MissingParameter":          {kind: broker.ErrInvalid},
	"ParameterValueInvalid":     {kind: broker.ErrInvalid},
	"ValidationError":           {kind: broker.ErrInvalid},
	"ValidationException":       {kind: broker.ErrInvalid},
	"InvalidAction":             {kind: broker.ErrUnsupported},
	"UnknownOperationException": {kind: broker.ErrUnsupported},
	"UnsupportedOperation":      {kind: broker.ErrUnsupported},
	"FilterPolicyLimitExceeded": {kind: broker.ErrUnsupported}, // quotas, with status 403
	"SubscriptionLimitExceeded": {kind: broker.ErrUnsupported},
	"TagLimitExceeded":          {kind: broker.ErrUnsupported},
	"TopicLimitExceeded":        {kind: broker.ErrUnsupported},
	"BatchRequestTooLong":       {kind: broker.ErrTooLarge},

	"ReceiptHandleIsInvalid": {kind: broker.ErrLeaseLost},
	"MessageNotInflight":     {kind: broker.ErrLeaseLost},

	"InternalError":             {kind: broker.ErrUnavailable, retry: true, maybe: true},
	"InternalFailure":           {kind: broker.ErrUnavailable, retry: true, maybe: true},
	"InternalServerError":       {kind: broker.ErrUnavailable, retry: true, maybe: true},
	"RequestTimeout":            {kind: broker.ErrUnavailable, retry: true, maybe: true},
	"RequestTimeoutException":   {kind: broker.ErrUnavailable, retry: true, maybe: true},
	"ConcurrentAccess":          {kind: broker.ErrUnavailable, retry: true}, // to a topic's tags
	"PurgeQueueInProgress":      {kind: broker.ErrUnavailable},
	"OverLimit":                 {kind: broker.ErrUnavailable, retry: true},
	"QueueDeletedRecently":      {kind: broker.ErrUnavailable, retry: true},
	"RequestExpired":            {kind: broker.ErrUnavailable, retry: true},
	"RequestLimitExceeded":      {kind: broker.ErrUnavailable, retry: true},
	"RequestThrottled":          {kind: broker.ErrUnavailable, retry: true},
	"RequestThrottledException": {kind: broker.ErrUnavailable, retry: true},
	"RequestTimeTooSkewed":      {kind: broker.ErrUnavailable, retry: true},
	"ServiceUnavailable":        {kind: broker.ErrUnavailable, retry: true, maybe: true},
	"Throttled":                 {kind: broker.ErrUnavailable, retry: true},
	"ThrottledException":        {kind: broker.ErrUnavailable, retry: true},
	"Throttling":                {kind: broker.ErrUnavailable, retry: true},
	"ThrottlingException":       {kind: broker.ErrUnavailable, retry: true},
	"TooManyRequestsException":  {kind: broker.ErrUnavailable, retry: true},
}

// judge says what err, of a whole request, means. ctx is the request's own.
func (b *Broker) judge(ctx context.Context, err error) *failure {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*failure](err); ok {
		return f
	}
	if api, ok := errors.AsType[smithy.APIError](err); ok {
		if f, ok := judgeCode(api.ErrorCode()); ok {
			f.err = err
			return &f
		}
	}
	if resp, ok := errors.AsType[*smithyhttp.ResponseError](err); ok {
		f := &failure{err: err}
		switch status := resp.HTTPStatusCode(); {
		case status == http.StatusRequestTimeout:
			f.kind, f.retry, f.maybe = broker.ErrUnavailable, true, true
		case status == http.StatusTooManyRequests:
			f.kind, f.retry = broker.ErrUnavailable, true
		case status >= 500, status < 300: // 2xx: an answer that cannot be read
			f.kind, f.retry, f.maybe = broker.ErrUnavailable, true, true
		case status == http.StatusUnauthorized, status == http.StatusForbidden:
			f.kind = broker.ErrUnauthorized
		case status == http.StatusRequestEntityTooLarge:
			f.kind = broker.ErrTooLarge
		case status == http.StatusNotFound:
			f.kind = broker.ErrNotFound
		default:
			f.kind = broker.ErrInvalid
		}
		return f
	}
	if _, ok := errors.AsType[*smithy.SerializationError](err); ok {
		return &failure{kind: broker.ErrInvalid, err: err}
	}
	if _, ok := errors.AsType[smithy.InvalidParamsError](err); ok {
		return &failure{kind: broker.ErrInvalid, err: err}
	}
	if _, ok := errors.AsType[*smithyhttp.RequestSendError](err); ok {
		return &failure{kind: broker.ErrUnavailable, err: err, retry: true, maybe: !neverSent(err)}
	}
	// What fails before sending is, above all, that there are no credentials.
	if b.cfg.Credentials != nil && ctx.Err() == nil {
		if _, cerr := b.cfg.Credentials.Retrieve(ctx); cerr != nil && ctx.Err() == nil {
			return &failure{kind: broker.ErrUnauthorized, err: err}
		}
	}
	return &failure{kind: broker.ErrUnavailable, err: err, retry: true, maybe: true}
}

// judgeCode says what an error code means, and whether it is known. A code may
// come in a namespace, before a URI, and by two names: that of the error's
// shape, or that of SQS's former protocol, which the client prefers where SQS
// tells it (BatchRequestTooLong, AWS.SimpleQueueService.BatchRequestTooLong).
func judgeCode(code string) (failure, bool) {
	code = code[strings.LastIndexByte(code, '#')+1:]
	code, _, _ = strings.Cut(code, ":")
	code = strings.TrimPrefix(code, "AWS.SimpleQueueService.")
	if hasPrefixFold(code, "KMS") {
		return judgeKey(code), true
	}
	f, ok := codes[code]
	return f, ok
}

// judgeKey says what an error of the queue's encryption key means, of SQS by
// either name (KmsThrottled, KMS.ThrottlingException) or of SNS
// (KMSThrottling). But for throttling the key may not be used: it is disabled,
// deleted, or not the caller's to use. The message is not to blame.
func judgeKey(code string) failure {
	if strings.Contains(code, "Throttl") {
		return failure{kind: broker.ErrUnavailable, retry: true}
	}
	return failure{kind: broker.ErrUnauthorized}
}

// judgeEntry says what a failed entry of a batch means. Whose fault it is
// decides where the code is unknown: throttling may come as the sender's.
func judgeEntry(code, message *string, senderFault bool) *failure {
	f, ok := judgeCode(aws.ToString(code))
	switch {
	case ok:
	case senderFault:
		f = failure{kind: broker.ErrInvalid}
	default:
		f = failure{kind: broker.ErrUnavailable, retry: true, maybe: true}
	}
	f.err = &smithy.GenericAPIError{Code: aws.ToString(code), Message: aws.ToString(message)}
	return &f
}

// fail wraps err for the caller. Errors that carry an *Error pass.
func fail(op, name string, err error) error {
	if err == nil {
		return nil
	}
	if _, ok := errors.AsType[*broker.Error](err); ok {
		return err
	}
	temporary := errors.Is(err, broker.ErrUnavailable)
	return &broker.Error{Op: op, Adapter: adapterName, Name: name, Temporary: temporary, Err: err}
}

// gaveUp is the error of a call whose ctx ended while it was being retried;
// last is the latest failure.
func gaveUp(ctx context.Context, last *failure, maybe bool) error {
	err := broker.ContextError(ctx)
	if last != nil {
		err = fmt.Errorf("%w, after %w", err, last.err)
	}
	if maybe {
		return broker.UnknownOutcome(err)
	}
	return err
}
