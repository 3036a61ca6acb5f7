package keys

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

func TestParse(t *testing.T) {
	for _, row := range []struct {
		text  string
		want  []uint
		fails string
	}{
		{"esc", []uint{1}, ""},
		{"Ctrl+Alt+Delete", []uint{29, 56, 111}, ""},
		{"shift+a", []uint{42, 30}, ""},
		{"f1", []uint{59}, ""},
		{"F10", []uint{68}, ""},
		{"f12", []uint{88}, ""},
		{"0", []uint{11}, ""},
		{"p", []uint{25}, ""},
		{"m", []uint{50}, ""},
		{"ctrl+del", nil, `keys: "del": no such key; nearest: delete`},
		{"ctrl+", nil, `keys: "": no such key; one of 0, 1,`},
		{"", nil, `keys: "": no such key; one of 0, 1,`},
		{strings.Repeat("a+", 16) + "a", nil, "keys: 17 keys; at most 16 at once"},
	} {
		got, err := Parse(row.text)
		if diff := cmp.Diff(row.want, got); diff != "" {
			t.Errorf("%q: codes (-want,+got):\n%s", row.text, diff)
		}
		if row.fails != "" && (err == nil || !strings.HasPrefix(err.Error(), row.fails)) || row.fails == "" && err != nil {
			t.Errorf("%q: error %v; want %q", row.text, err, row.fails)
		}
	}
}
