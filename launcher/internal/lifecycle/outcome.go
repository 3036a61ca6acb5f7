package lifecycle

import (
	"strings"
	"unicode"
	"unicode/utf8"

	"podvirt.dev/api"
)

// Outcome is how a VM ended or why it could not start.
type Outcome struct {
	Reason api.Reason
	Text   string // one line; for BadConfig the whole message
}

// Message is the termination message: "Reason: sentence", one line of at most 512 bytes without control characters,
// whatever a guest or QEMU put into the text. The list of errors of BadConfig keeps its lines.
func (o Outcome) Message() string {
	if o.Reason == api.ReasonBadConfig {
		return o.Text
	}
	text := strings.Map(func(r rune) rune {
		switch {
		case r == '\n' || r == '\t':
			return ' '
		case unicode.IsControl(r) || r == utf8.RuneError:
			return -1
		default:
			return r
		}
	}, strings.TrimSpace(o.Text))
	message := string(o.Reason)
	if text != "" {
		message += ": " + text
	}
	return cut(message, api.MaxTerminationOneLine)
}

// cut shortens text to at most limit bytes at the end of a character.
func cut(text string, limit int) string {
	if len(text) <= limit {
		return text
	}
	const mark = "…"
	text = text[:limit-len(mark)]
	for !utf8.ValidString(text) {
		text = text[:len(text)-1]
	}
	return text + mark
}
