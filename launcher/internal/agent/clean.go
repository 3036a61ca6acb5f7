package agent

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// Bounds of what is kept of an answer. A guest that says more is cut, not refused: a name too long is still a name.
const (
	maxText  = 512 // sentences: error texts, versions
	maxWord  = 128 // names: devices, users, host names
	maxItems = 256 // entries of a list
)

// Clean makes text of a guest fit for logs, terminals and conditions: control characters, invalid UTF-8, bidirectional
// and other invisible formatting characters are dropped, so no escape sequence survives; at most limit bytes are kept.
func Clean(text string, limit int) string {
	if len(text) > 4*limit {
		text = text[:4*limit] // no work on what would be cut anyway
	}
	var b strings.Builder
	for _, r := range text {
		if r == utf8.RuneError || unicode.IsControl(r) || unicode.Is(unicode.Cf, r) || r == '\u2028' || r == '\u2029' {
			continue
		}
		if b.Len()+utf8.RuneLen(r) > limit {
			break
		}
		b.WriteRune(r)
	}
	return strings.TrimSpace(b.String())
}

// bounded returns at most maxItems entries of a list.
func bounded[T any](items []T) []T {
	if len(items) > maxItems {
		return items[:maxItems]
	}
	return items
}
