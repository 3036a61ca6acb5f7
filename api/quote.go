package api

import (
	"fmt"
	"strings"
	"unicode"
	"unicode/utf8"
)

// longestShown is how many bytes of a value a message repeats.
const longestShown = 253

// quote returns the value between double quotes, safe to print: what is not printable is escaped, what is long is cut.
func quote(value string) string { return `"` + shown(value) + `"` }

// shown is quote without the quotes around it, for values inside option strings.
func shown(value string) string {
	cut := ""
	if len(value) > longestShown {
		value, cut = cutRunes(value, longestShown), "…"
	}
	if !strings.ContainsFunc(value, mustEscape) && utf8.ValidString(value) {
		return value + cut
	}
	var b strings.Builder
	for len(value) > 0 {
		r, size := utf8.DecodeRuneInString(value)
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, value[0])
		case r == '"' || r == '\\':
			b.WriteString(`\` + string(r))
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\t':
			b.WriteString(`\t`)
		case mustEscape(r):
			fmt.Fprintf(&b, `\u{%x}`, r)
		default:
			b.WriteRune(r)
		}
		value = value[size:]
	}
	return b.String() + cut
}

func mustEscape(r rune) bool {
	return r == '"' || r == '\\' || r == utf8.RuneError || !unicode.IsPrint(r) && r != ' '
}

func cutRunes(value string, limit int) string {
	for limit > 0 && !utf8.RuneStart(value[limit]) {
		limit--
	}
	return value[:limit]
}

// quoteKey shows an annotation key; Kubernetes allows no unprintable ones, a file might hold them.
func quoteKey(key string) string { return shown(key) }

// quoteName shows the name of an option as it was written.
func quoteName(name string) string { return shown(name) }
