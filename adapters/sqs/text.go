package sqs

import (
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"strings"
	"unicode/utf8"
)

const base64Prefix = "base64:"

// isText tells whether s may be a body or an attribute's value: SQS takes
// #x9 | #xA | #xD | #x20 to #xD7FF | #xE000 to #xFFFD | #x10000 to #x10FFFF
// (SendMessage, "Valid Values"), and nothing that is empty.
func isText[T string | []byte](s T) bool {
	for i := 0; i < len(s); {
		if len(s)-i >= 8 && isPlain(eight(s[i:i+8])) {
			i += 8
			continue
		}
		c := s[i]
		if c < utf8.RuneSelf {
			if c < ' ' && c != '\t' && c != '\n' && c != '\r' {
				return false
			}
			i++
			continue
		}
		r, n := decodeRune(s[i:])
		if r == utf8.RuneError && n == 1 || r == 0xFFFE || r == 0xFFFF {
			return false
		}
		i += n
	}
	return len(s) > 0
}

// The bytes of a word, each 1 or with its highest bit alone.
const (
	ones  = 0x0101010101010101
	highs = 0x8080808080808080
)

// eight returns the eight bytes of s as a word.
func eight[T string | []byte](s T) uint64 {
	return uint64(s[0]) | uint64(s[1])<<8 | uint64(s[2])<<16 | uint64(s[3])<<24 |
		uint64(s[4])<<32 | uint64(s[5])<<40 | uint64(s[6])<<48 | uint64(s[7])<<56
}

// isPlain tells whether all bytes of w are ASCII, and none is a control
// character but DEL.
func isPlain(w uint64) bool { return (w|(w-' '*ones))&highs == 0 }

// isVerbatim tells whether all bytes of w stand in JSON as they are.
func isVerbatim(w uint64) bool {
	quote, slash := w^'"'*ones, w^'\\'*ones
	return ((w-' '*ones)&^w|(quote-ones)&^quote|(slash-ones)&^slash)&highs == 0
}

func decodeRune[T string | []byte](s T) (rune, int) {
	if len(s) > utf8.UTFMax {
		s = s[:utf8.UTFMax]
	}
	return utf8.DecodeRuneInString(string(s))
}

// safe returns s as text that restore turns back into s: s itself, or
// "base64:" and its bytes in base64.
func safe(s string) string {
	if (s == "" || isText(s)) && !strings.HasPrefix(s, base64Prefix) {
		return s
	}
	return base64Prefix + base64.StdEncoding.EncodeToString([]byte(s))
}

// restore undoes safe. Text that only looks like it stays as it is.
func restore(s string) string {
	if enc, ok := strings.CutPrefix(s, base64Prefix); ok {
		if raw, err := base64.StdEncoding.DecodeString(enc); err == nil {
			return string(raw)
		}
	}
	return s
}

// isAttributeName tells whether a header's key may name an attribute: 1 to 256
// of A-Z a-z 0-9 _ - . without a period at an end or two in a row, and none of
// the prefixes that AWS or this package keeps for itself (SQS, "Message
// attribute components").
func isAttributeName(s string) bool {
	if s == "" || len(s) > 256 || s[0] == '.' || s[len(s)-1] == '.' {
		return false
	}
	for i := range len(s) {
		c := s[i]
		switch {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '_', c == '-':
		case c == '.' && s[i-1] != '.':
		default:
			return false
		}
	}
	return !hasPrefixFold(s, "aws.") && !hasPrefixFold(s, "amazon.") && !hasPrefixFold(s, ownPrefix)
}

func hasPrefixFold(s, prefix string) bool {
	return len(s) >= len(prefix) && strings.EqualFold(s[:len(prefix)], prefix)
}

// isToken tells whether s may be a group or deduplication id: 1 to 128
// alphanumeric characters and punctuation.
func isToken(s string) bool {
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return false
		}
	}
	return s != "" && len(s) <= 128
}

// token returns prefix+id if that may be a group or deduplication id,
// otherwise prefix and the hash of id.
func token(prefix, id string) string {
	if s := prefix + id; isToken(s) {
		return s
	}
	sum := sha256.Sum256([]byte(id))
	return prefix + "sha256:" + hex.EncodeToString(sum[:])
}
