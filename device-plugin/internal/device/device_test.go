package device

import (
	"testing"

	"github.com/google/go-cmp/cmp"
)

func resource(name string, units ...Unit) Resource { return Resource{Name: name, Units: units} }

func TestDiff(t *testing.T) {
	kvm := resource("podvirt.dev/kvm", Unit{ID: "kvm-0"}, Unit{ID: "kvm-1"})
	tun := resource("podvirt.dev/tun", Unit{ID: "tun-0"})
	granted := func(g Grant) []Resource { return []Resource{resource(tun.Name, Unit{ID: "tun-0", Grant: g})} }
	tunOnly := Changes{Changed: []string{tun.Name}}
	tests := map[string]struct {
		before, after []Resource
		want          Changes
	}{
		"nothing":            {nil, nil, Changes{}},
		"same, other order":  {[]Resource{kvm, tun}, []Resource{tun, kvm}, Changes{}},
		"added":              {[]Resource{kvm}, []Resource{tun, kvm}, Changes{Added: []string{tun.Name}}},
		"removed":            {[]Resource{kvm, tun}, []Resource{kvm}, Changes{Removed: []string{tun.Name}}},
		"fewer units":        {[]Resource{kvm}, []Resource{resource(kvm.Name, kvm.Units[0])}, Changes{Changed: []string{kvm.Name}}},
		"no units any more":  {[]Resource{tun}, []Resource{resource(tun.Name)}, Changes{Changed: []string{tun.Name}}},
		"unhealthy":          {[]Resource{tun}, []Resource{resource(tun.Name, Unit{ID: "tun-0", Reason: "gone"})}, Changes{Changed: []string{tun.Name}}},
		"other cell":         {[]Resource{tun}, []Resource{resource(tun.Name, Unit{ID: "tun-0", Cells: []int{1}})}, Changes{Changed: []string{tun.Name}}},
		"other CDI device":   {[]Resource{tun}, granted(Grant{CDI: []string{"x"}}), tunOnly},
		"other variable":     {[]Resource{tun}, granted(Grant{Env: map[string]string{"A": ""}}), tunOnly},
		"all three at once":  {[]Resource{kvm, resource("z")}, []Resource{resource(kvm.Name), tun}, Changes{[]string{tun.Name}, []string{kvm.Name}, []string{"z"}}},
		"only the note said": {[]Resource{tun}, []Resource{{Name: tun.Name, Units: tun.Units, Note: "why"}}, Changes{Changed: []string{tun.Name}}},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			if diff := cmp.Diff(tt.want, Diff(tt.before, tt.after)); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
		})
	}
}

func TestBoardWakesOnlyReadersOfWhatChanged(t *testing.T) {
	b := NewBoard()
	b.Publish([]Resource{resource("a", Unit{ID: "a-0"}), resource("b")})
	_, names := b.Names()
	_, a, _ := b.Resource("a")
	_, bb, _ := b.Resource("b")

	if c := b.Publish([]Resource{resource("a", Unit{ID: "a-0"}), resource("b")}); !c.Empty() {
		t.Errorf("changes = %+v; want none", c)
	}
	if closed(a) || closed(bb) || closed(names) {
		t.Error("a reader was woken although nothing changed")
	}

	b.Publish([]Resource{resource("a", Unit{ID: "a-0", Reason: "gone"}), resource("b")})
	if !closed(a) || closed(bb) || closed(names) {
		t.Errorf("woken: a %v, b %v, names %v; want a alone", closed(a), closed(bb), closed(names))
	}

	b.Publish([]Resource{resource("a", Unit{ID: "a-0", Reason: "gone"})})
	if !closed(bb) || !closed(names) {
		t.Errorf("woken by a removal: b %v, names %v; want both", closed(bb), closed(names))
	}
	if _, _, ok := b.Resource("b"); ok {
		t.Error("b is still on the board")
	}
}

func closed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
