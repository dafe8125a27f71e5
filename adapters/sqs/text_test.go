package sqs

import (
	"encoding/json"
	"testing"
	"unicode/utf8"

	"github.com/queuestream/broker"
)

// textSeeds have what is special at each place of a word, and at its ends.
func textSeeds(add func(string)) {
	for _, special := range []string{"", "\"", "\\", "\n", "\t", "\r", "\x00", "\x1f", " ", "!", "\x7f", "\x80", "é", "\u2028", "\ufffe", "\uffff", "\U0001f600", "\xff"} {
		for at := range 18 {
			b := []byte("abcdefghijklmnopq")
			add(string(b[:at]) + special + string(b[at:]))
		}
	}
}

// byByte is isText without words.
func byByte(s string) bool {
	for i, r := range s {
		switch {
		case r == '\t', r == '\n', r == '\r', r >= ' ' && r != utf8.RuneError && r != 0xFFFE && r != 0xFFFF:
		case r == utf8.RuneError:
			if _, n := utf8.DecodeRuneInString(s[i:]); n == 1 {
				return false
			}
		default:
			return false
		}
	}
	return s != ""
}

func FuzzText(f *testing.F) {
	textSeeds(func(s string) { f.Add(s) })
	f.Fuzz(func(t *testing.T, s string) {
		if got, want := isText(s), byByte(s); got != want || isText([]byte(s)) != want {
			t.Fatalf("isText(%q): %v, want %v", s, got, want)
		}
		if !utf8.ValidString(s) {
			return
		}
		var back string
		if err := json.Unmarshal(appendJSON(nil, s), &back); err != nil || back != s {
			t.Fatalf("%q comes back as %q: %v", s, back, err)
		}
	})
}

func BenchmarkText(b *testing.B) {
	body := []byte(broker.NewID())
	for len(body) < 256 {
		body = append(body, body...)
	}
	text, room := string(body), make([]byte, 0, 1024)
	b.Run("isText", func(b *testing.B) {
		for b.Loop() {
			isText(body)
		}
	})
	b.Run("appendJSON", func(b *testing.B) {
		for b.Loop() {
			room = appendJSON(room[:0], text)
		}
	})
	b.Run("growStack", func(b *testing.B) {
		for b.Loop() {
			done := make(chan byte)
			go func() { done <- growStack(0) }()
			<-done
		}
	})
}
