package sqs

import (
	"errors"
	"fmt"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/aws/aws-sdk-go-v2/service/sqs/types"
	"pgregory.net/rapid"

	"github.com/queuestream/broker"
)

// arrive is how a message comes out of SQS that went in as w.
func arrive(w wire) *types.Message {
	id := "sqs-id"
	return &types.Message{MessageId: &id, Body: &w.body, MessageAttributes: w.entry(&id).MessageAttributes, Attributes: map[string]string{
		"MessageGroupId": w.group, "MessageDeduplicationId": w.dedup, "ApproximateReceiveCount": "3", "SentTimestamp": "1700000000000",
	}}
}

func checkWire(t interface{ Fatalf(string, ...any) }, w wire) {
	if !isText(w.body) {
		t.Fatalf("body %q is not text", w.body)
	}
	if len(w.attrs) > maxAttributes {
		t.Fatalf("%d attributes", len(w.attrs))
	}
	names := map[string]bool{}
	for _, a := range w.attrs {
		if a.name == "" || len(a.name) > 256 || !a.binary && !isText(a.value) || a.value == "" || names[a.name] {
			t.Fatalf("attribute %q: %q", a.name, a.value)
		}
		names[a.name] = true
	}
	for _, id := range []string{w.group, w.dedup} {
		if id != "" && !isToken(id) {
			t.Fatalf("id %q", id)
		}
	}
}

func TestCodecIsReversible(t *testing.T) {
	text := rapid.OneOf(rapid.String(), rapid.StringN(0, 8, -1), rapid.SampledFrom([]string{
		"", "base64:", "base64:eA==", "qs-id", "qs-none:x", "qs-id:x", "a", "b.c", "\x00", "\xff", "\ufffe", strings.Repeat("x", 300),
	}))
	rapid.Check(t, func(t *rapid.T) {
		c := codec{fifo: rapid.Bool().Draw(t, "fifo"), contentDedup: rapid.Bool().Draw(t, "content")}
		m := broker.Message{
			ID: rapid.OneOf(text, rapid.Just("id")).Filter(func(s string) bool { return s != "" }).Draw(t, "id"), Body: []byte(text.Draw(t, "body")),
			ContentType: text.Draw(t, "type"), CorrelationID: text.Draw(t, "correlation"), ReplyTo: text.Draw(t, "reply"),
		}
		for range rapid.IntRange(0, 14).Draw(t, "headers") {
			m.Headers = append(m.Headers, broker.Header{Key: text.Filter(func(s string) bool { return s != "" }).Draw(t, "key"), Value: text.Draw(t, "value")})
		}
		if c.fifo {
			m.GroupID, m.DedupID = text.Draw(t, "group"), text.Draw(t, "dedup")
		}
		w, err := c.encode(&m, extra{attempts: 2})
		if err != nil {
			t.Fatal(err)
		}
		checkWire(t, w)
		r := decode(arrive(w), false)
		if len(m.Body) == 0 {
			m.Body = nil
		}
		if !reflect.DeepEqual(r.Message, m) {
			t.Fatalf("came back as %+v, was %+v", r.Message, m)
		}
		if r.attempt != 5 || !r.time.Equal(time.UnixMilli(1700000000000)) {
			t.Fatalf("attempt %d, time %v", r.attempt, r.time)
		}
	})
}

func FuzzDecode(f *testing.F) {
	f.Add("body", "qs-headers", `[["k","v"]]`, "qs-meta", `{"due":1}`)
	f.Add("%%%", "qs-encoding", "base64", "qs-order", "b,,a")
	f.Add(`{"Type":"Notification","MessageId":"i","TopicArn":"t","Message":"m"}`, "qs-headers", "{", "qs-meta", "[")
	f.Fuzz(func(t *testing.T, body, name1, value1, name2, value2 string) {
		var w wire
		w.body = body
		w.set(name1, value1)
		w.set(name2, value2)
		for _, unwrap := range []bool{false, true} {
			if r := decode(arrive(w), unwrap); r.attempt < 3 {
				t.Errorf("attempt %d", r.attempt)
			}
		}
	})
}

func TestUnwrapSNS(t *testing.T) {
	var w wire
	w.body = `{"Type":"Notification","MessageId":"sns-id","TopicArn":"arn:x","Message":"hello","MessageAttributes":{"k":{"Type":"String","Value":"v"},"b":{"Type":"Binary","Value":"AP8="}}}`
	if r := decode(arrive(w), false); string(r.Body) != w.body {
		t.Errorf("unwrapped without being asked: %q", r.Body)
	}
	r := decode(arrive(w), true)
	if want := (broker.Headers{{Key: "b", Value: "\x00\xff"}, {Key: "k", Value: "v"}}); string(r.Body) != "hello" || r.ID != "sns-id" || !slices.Equal(r.Headers, want) {
		t.Errorf("%+v", r.Message)
	}
	w.body = `{"Type":"Other"}`
	if r := decode(arrive(w), true); string(r.Body) != w.body {
		t.Errorf("%q", r.Body)
	}
}

func TestFilterPolicies(t *testing.T) {
	key := func(keys ...string) (bs []broker.Binding) {
		for _, k := range keys {
			bs = append(bs, broker.Binding{RoutingKey: k})
		}
		return bs
	}
	many := make([]string, 151)
	for i := range many {
		many[i] = fmt.Sprint(i)
	}
	h := func(kv ...string) (hs broker.Headers) {
		for i := 0; i < len(kv); i += 2 {
			hs = append(hs, broker.Header{Key: kv[i], Value: kv[i+1]})
		}
		return hs
	}
	for _, tt := range []struct {
		kind broker.ExchangeKind
		bs   []broker.Binding
		want string // "": ErrUnsupported
	}{
		{broker.ExchangeFanout, key("x"), `{}`},
		{broker.ExchangeDirect, key("a", "b", "a"), `{"qs-routing-key":["a","b"]}`},
		{broker.ExchangeDirect, key("#"), `{"qs-routing-key":["#"]}`},
		{broker.ExchangeDirect, key(""), ""},
		{broker.ExchangeDirect, key(many...), ""},
		{broker.ExchangeTopic, key("a.b"), `{"qs-routing-key":["a.b"]}`},
		{broker.ExchangeTopic, key("a.#", "a"), `{"qs-routing-key":["a",{"prefix":"a."}]}`},
		{broker.ExchangeTopic, key("a", "#"), `{}`},
		{broker.ExchangeTopic, key("a*b"), `{"qs-routing-key":["a*b"]}`},
		{broker.ExchangeTopic, key("*"), ""},
		{broker.ExchangeTopic, key("*.#"), ""},
		{broker.ExchangeTopic, key("a.*"), ""},
		{broker.ExchangeTopic, key("#.a"), ""},
		{broker.ExchangeTopic, key("a.#.b"), ""},
		{broker.ExchangeHeaders, []broker.Binding{{Headers: h("a", "1", "b", "2")}}, `{"a":["1"],"b":["2"]}`},
		{broker.ExchangeHeaders, []broker.Binding{{Headers: h("a", "1", "b", "2"), MatchAny: true}}, `{"$or":[{"a":["1"]},{"b":["2"]}]}`},
		{broker.ExchangeHeaders, []broker.Binding{{Headers: h("a", "1")}, {Headers: h("a", "2")}}, `{"a":["1","2"]}`},
		{broker.ExchangeHeaders, []broker.Binding{{}}, `{}`},
		{broker.ExchangeHeaders, []broker.Binding{{Headers: h("a", "")}}, ""},
		{broker.ExchangeHeaders, []broker.Binding{{Headers: h("a", "1", "a", "2")}}, ""},
		{broker.ExchangeHeaders, []broker.Binding{{Headers: h("a", "\xff")}}, ""},
		{broker.ExchangeHeaders, []broker.Binding{{Headers: h("a", "1", "b", "1", "c", "1", "d", "1", "e", "1", "f", "1")}}, ""},
	} {
		got, err := filterPolicy(tt.kind, tt.bs)
		if tt.want == "" {
			if !isUnsupported(err) {
				t.Errorf("%v %+v: %q, %v", tt.kind, tt.bs, got, err)
			}
		} else if got != tt.want || err != nil {
			t.Errorf("%v %+v: %s, %v, want %s", tt.kind, tt.bs, got, err, tt.want)
		}
	}
}

func TestBindingTags(t *testing.T) {
	bindings := []broker.Binding{
		{RoutingKey: "a.#"}, {RoutingKey: "\xff"}, {RoutingKey: "base64:x"},
	}
	tags := map[string]string{"other": "tag", tagBind + shortHash("ex") + ".broken": "%"}
	for i := range bindings {
		key, value := bindingTag("ex", broker.ExchangeTopic, &bindings[i])
		tags[key] = value
	}
	got := bindingsOf("ex", tags)
	for _, b := range bindings {
		if !slices.ContainsFunc(got, func(g broker.Binding) bool { return g.RoutingKey == b.RoutingKey }) {
			t.Errorf("%q is missing in %v", b.RoutingKey, got)
		}
	}
	if len(got) != len(bindings) || len(bindingsOf("another", tags)) != 0 {
		t.Errorf("got %v", got)
	}
}

func TestOpenURL(t *testing.T) {
	o, err := parseURL("sqs://key:secret@eu-west-1?endpoint=http://127.0.0.1:1&sns_endpoint=http://127.0.0.1:2&poll_wait=3s&max_pollers=4" +
		"&send_concurrency=5&plain=true&unwrap_sns=1&fair_groups=t&batch_groups=true&role=r&account=1&request_timeout=6s")
	if err != nil {
		t.Fatal(err)
	}
	if o.Credentials == nil {
		t.Error("no credentials")
	}
	o.Credentials = nil
	want := &Options{
		Region: "eu-west-1", Endpoint: "http://127.0.0.1:1", SNSEndpoint: "http://127.0.0.1:2", PollWait: 3 * time.Second, MaxPollers: 4,
		SendConcurrency: 5, Plain: true, UnwrapSNS: true, FairGroups: true, BatchGroups: true, RoleARN: "r", AccountID: "1", RequestTimeout: 6 * time.Second,
	}
	if !reflect.DeepEqual(o, want) {
		t.Errorf("%+v", o)
	}
	for _, bad := range []string{
		"http://x", "sqs://r/queue", "sqs://r?nope=1", "sqs://r?endpoint=127.0.0.1", "sqs://r?plain=maybe",
		"sqs://r?poll_wait=21s", "sqs://r?poll_wait=1500ms", "sqs://r?max_pollers=-1", "sqs://key@r", "sqs://%zz",
	} {
		if b, err := OpenURL(t.Context(), bad); err == nil {
			t.Errorf("%s: nil", bad)
			_ = b.Close()
		}
	}
}

func isUnsupported(err error) bool { return errors.Is(err, broker.ErrUnsupported) }
