package agent

import "testing"

func TestClean(t *testing.T) {
	rows := []struct {
		name, text string
		limit      int
		want       string
	}{
		{"plain", "Debian 13", 32, "Debian 13"},
		{"terminal escape", "a\x1b]0;title\x07b", 32, "a]0;titleb"},
		{"C1 control", "a\u009b31mb", 32, "a31mb"},
		{"newline and NUL", "a\n\x00b", 32, "ab"},
		{"right-to-left override", "a\u202eb", 32, "ab"},
		{"line separator", "a\u2028b", 32, "ab"},
		{"invalid UTF-8", "a\xffb", 32, "ab"},
		{"cut at a rune", "ääää", 5, "ää"},
		{"blanks around", "  a  ", 32, "a"},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			if got := Clean(row.text, row.limit); got != row.want {
				t.Errorf("Clean(%q) = %q, want %q", row.text, got, row.want)
			}
		})
	}
}
