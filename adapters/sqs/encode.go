package sqs

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"slices"
	"strings"
	"time"

	"github.com/queuestream/broker"
)

// The attributes that this package sets; see the package documentation.
const (
	ownPrefix      = "qs-"
	attrID         = "qs-id"
	attrEncoding   = "qs-encoding"
	attrMeta       = "qs-meta"
	attrHeaders    = "qs-headers"
	attrOrder      = "qs-order"
	attrRoutingKey = "qs-routing-key"

	encodingBase64 = "base64"
	encodingEmpty  = "empty"
	emptyBody      = "-" // SQS has no empty bodies

	maxAttributes = 10
	maxDelay      = 900 * time.Second // DelaySeconds
)

// Prefixes of group and deduplication ids that this package makes.
const (
	groupNone  = "qs-none:" // and the message's id: no group
	groupHash  = "qs-group:"
	dedupByID  = "qs-id:" // and the message's id: no DedupID
	dedupHash  = "qs-dedup:"
	dedupMoved = "qs-moved:" // a copy made by dead-lettering or redriving
)

// meta is the JSON object in the attribute qs-meta: what has no place of its
// own in an SQS message. Strings are as of safe.
type meta struct {
	ContentType   string `json:"content_type,omitempty"`
	CorrelationID string `json:"correlation_id,omitempty"`
	ReplyTo       string `json:"reply_to,omitempty"`
	GroupID       string `json:"group_id,omitempty"` // where the message's own is a hash
	DedupID       string `json:"dedup_id,omitempty"` // likewise
	Due           int64  `json:"due,omitempty"`      // ms since 1970: not to be delivered before
	Sent          int64  `json:"sent,omitempty"`     // ms since 1970: of the first copy
	Attempts      int    `json:"attempts,omitempty"` // made on earlier copies
}

// A wire is a message as SQS and SNS carry it.
type wire struct {
	body  string
	attrs []attribute // of different names
	group string
	dedup string
	delay int32 // seconds; 0: the queue's own
	size  int   // bytes as AWS counts them: body, and each attribute's name, type and value
}

// An attribute is a message attribute of type String, or Binary.
type attribute struct {
	name, value string
	binary      bool
}

// A codec encodes for one queue or topic.
type codec struct {
	fifo         bool
	contentDedup bool
	plain        bool
	groups       bool   // standard queues: send GroupID
	routingKey   string // SNS
	native       bool   // headers must be attributes of their own, since filters read them
}

// An extra is what a copy made by this package carries beyond its message.
type extra struct {
	due      time.Time
	sent     time.Time
	attempts int
	dedup    string // replaces the deduplication id
}

func (c *codec) encode(m *broker.Message, x extra) (wire, error) {
	var w wire
	var md meta
	encoding := ""
	switch {
	case len(m.Body) == 0:
		w.body, encoding = emptyBody, encodingEmpty
	case isText(m.Body):
		w.body = string(m.Body)
	default:
		w.body, encoding = base64.StdEncoding.EncodeToString(m.Body), encodingBase64
	}
	c.ids(&w, m, x, encoding, &md)
	if m.Delay > 0 && !c.fifo {
		if m.Delay > maxDelay {
			x.due = time.Now().Add(m.Delay)
		}
		w.delay = seconds(min(m.Delay, maxDelay))
	}
	if !x.due.IsZero() {
		md.Due = x.due.UnixMilli()
	}
	if !x.sent.IsZero() {
		md.Sent = x.sent.UnixMilli()
	}
	md.Attempts = x.attempts
	md.ContentType, md.CorrelationID, md.ReplyTo = safe(m.ContentType), safe(m.CorrelationID), safe(m.ReplyTo)
	if c.plain {
		if err := c.plainOnly(m, &md, encoding); err != nil {
			return w, err
		}
	} else {
		w.attrs = make([]attribute, 0, 1+len(m.Headers))
		w.set(attrID, safe(m.ID))
		if encoding != "" {
			w.set(attrEncoding, encoding)
		}
		if md != (meta{}) {
			w.set(attrMeta, marshal(md))
		}
	}
	if c.routingKey != "" {
		w.set(attrRoutingKey, c.routingKey)
	}
	if err := c.headers(&w, m.Headers); err != nil {
		return w, err
	}
	w.size = len(w.body)
	for i := range w.attrs {
		a := &w.attrs[i]
		w.size += len(a.name) + len(*a.dataType()) + len(a.value)
	}
	return w, nil
}

// plainOnly refuses what plain mode cannot carry. ID is the exception: SQS
// gives every message one of its own, which is what receivers see.
func (c *codec) plainOnly(m *broker.Message, md *meta, encoding string) error {
	switch {
	case encoding == encodingEmpty:
		return broker.Unsupported("plain mode: SQS has no empty bodies")
	case encoding != "":
		return broker.Unsupported("plain mode: the body must be text in UTF-8 without control characters")
	case m.ContentType != "":
		return broker.Unsupported("plain mode: ContentType")
	case m.CorrelationID != "":
		return broker.Unsupported("plain mode: CorrelationID")
	case m.ReplyTo != "":
		return broker.Unsupported("plain mode: ReplyTo")
	case md.GroupID != "":
		return broker.Unsupported("plain mode: GroupID of %d bytes: want 1 to 128 of printable ASCII", len(m.GroupID))
	case md.DedupID != "":
		return broker.Unsupported("plain mode: DedupID of %d bytes: want 1 to 128 of printable ASCII", len(m.DedupID))
	case m.Delay > maxDelay:
		return broker.Unsupported("plain mode: Delay %v: the longest is %v", m.Delay, maxDelay)
	}
	return nil
}

// ids sets the group and deduplication ids, and in md what they do not show.
func (c *codec) ids(w *wire, m *broker.Message, x extra, encoding string, md *meta) {
	switch {
	case m.GroupID != "" && (c.fifo || c.groups):
		w.group = m.GroupID
		if !isToken(w.group) || strings.HasPrefix(w.group, ownPrefix) {
			w.group, md.GroupID = token(groupHash, m.GroupID), safe(m.GroupID)
		}
	case c.fifo:
		w.group = token(groupNone, m.ID)
	}
	if !c.fifo {
		return
	}
	switch {
	case x.dedup != "":
		w.dedup = dedupMoved + x.dedup
		md.DedupID = safe(m.DedupID)
	case m.DedupID != "":
		w.dedup = m.DedupID
		if !isToken(w.dedup) || strings.HasPrefix(w.dedup, ownPrefix) {
			w.dedup, md.DedupID = token(dedupHash, m.DedupID), safe(m.DedupID)
		}
	case !c.contentDedup:
		w.dedup = token(dedupByID, m.ID)
	case encoding != "":
		// SQS would hash the encoded body, which a text body may equal.
		sum := sha256.Sum256(m.Body)
		w.dedup = dedupHash + encoding + ":" + hex.EncodeToString(sum[:])
	}
}

// headers puts every header into an attribute of its own if all can be, and
// otherwise all into one.
func (c *codec) headers(w *wire, hs broker.Headers) error {
	if len(hs) == 0 {
		return nil
	}
	why := notNative(hs)
	ordered := slices.IsSortedFunc(hs, func(a, b broker.Header) int { return strings.Compare(a.Key, b.Key) })
	room := maxAttributes - len(w.attrs)
	if !ordered && !c.plain {
		room--
	}
	if why == nil && len(hs) > room {
		why = broker.Unsupported("%d headers: at most %d fit beside the attributes of this package", len(hs), room)
	}
	switch {
	case why == nil:
		for i := range hs {
			w.setHeader(hs[i])
		}
		if !ordered && !c.plain {
			w.set(attrOrder, strings.Join(hs.Keys(), ","))
		}
	case c.plain:
		return broker.Unsupported("plain mode: %w", why)
	case c.native:
		return broker.Unsupported("headers exchange: %w", why)
	default:
		pairs := make([][2]string, len(hs))
		for i := range hs {
			pairs[i] = [2]string{safe(hs[i].Key), safe(hs[i].Value)}
		}
		w.set(attrHeaders, marshal(pairs))
	}
	return nil
}

// notNative tells why headers cannot be attributes, or returns nil.
func notNative(hs broker.Headers) error {
	for i := range hs {
		switch {
		case !isAttributeName(hs[i].Key):
			return broker.Unsupported("header key %.64q cannot name an attribute", hs[i].Key)
		case hs[i].Value == "":
			return broker.Unsupported("header %q is empty, an attribute cannot be", hs[i].Key)
		}
		for j := range i {
			if hs[j].Key == hs[i].Key {
				return broker.Unsupported("header %q occurs twice, an attribute cannot", hs[i].Key)
			}
		}
	}
	return nil
}

func (w *wire) set(name, value string) {
	w.attrs = append(w.attrs, attribute{name: name, value: value})
}

func (w *wire) setHeader(h broker.Header) {
	w.attrs = append(w.attrs, attribute{name: h.Key, value: h.Value, binary: !isText(h.Value)})
}

func (a *attribute) dataType() *string {
	if a.binary {
		return &dataTypeBinary
	}
	return &dataTypeString
}

var (
	dataTypeString = "String"
	dataTypeBinary = "Binary"
)

// marshal returns v, which holds strings and numbers alone, as JSON.
func marshal(v any) string {
	b, err := json.Marshal(v)
	if err != nil {
		panic("sqs: " + err.Error()) // cannot be: see above
	}
	return string(b)
}

// seconds rounds up, so that nothing comes early.
func seconds(d time.Duration) int32 {
	return int32((d + time.Second - 1) / time.Second)
}
