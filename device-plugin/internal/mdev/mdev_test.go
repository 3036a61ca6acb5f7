package mdev

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
)

func kind(id, name string, available int) sysfs.MdevType {
	return sysfs.MdevType{ID: id, Name: name, API: "vfio-pci", Available: available}
}

// t4 and v100 are cards of the documents: their types with the instances that a whole card gives.
func t4(address string) sysfs.MdevParent {
	return sysfs.MdevParent{Name: address, Types: []sysfs.MdevType{
		kind("nvidia-222", "GRID T4-1B", 16), kind("nvidia-223", "GRID T4-2B", 8), kind("nvidia-224", "GRID T4-2B4", 8), kind("nvidia-228", "GRID T4-8A", 2),
	}}
}

func v100(address string) sysfs.MdevParent {
	return sysfs.MdevParent{Name: address, Types: []sysfs.MdevType{kind("nvidia-105", "GRID V100-1Q", 16), kind("nvidia-108", "GRID V100-4Q", 4)}}
}

func classes(t *testing.T, lines ...string) []api.DeviceClass {
	t.Helper()
	data := map[string]string{}
	for i, line := range lines {
		data[fmt.Sprintf("vgpu.c%d", i)] = "resource=e.org/c" + fmt.Sprint(i) + "," + line
	}
	list, errs := api.ParseDeviceClasses(data)
	if err := errs.Err(); err != nil {
		t.Fatal(err)
	}
	return list
}

func none(string) bool { return false }

// made counts instances by card and type, in the order of cards.
func made(instances []Instance) []string {
	counts := map[string]int{}
	for _, i := range instances {
		counts[i.Parent.Name+" "+i.Type.ID]++
	}
	var lines []string
	for _, key := range slices.Sorted(maps.Keys(counts)) {
		lines = append(lines, fmt.Sprintf("%s x%d", key, counts[key]))
	}
	return lines
}

// The numbers are those of devices.md 2.3.
func TestTypesOfCards(t *testing.T) {
	tests := map[string]struct {
		cards   []sysfs.MdevParent
		classes []string
		want    []string
	}{
		"three T4": {[]sysfs.MdevParent{t4("1"), t4("2"), t4("3")}, []string{"type=nvidia-222", "type=nvidia-228"},
			[]string{"1 nvidia-222 x16", "2 nvidia-228 x2", "3 nvidia-222 x16"}},
		"three T4, other order": {[]sysfs.MdevParent{t4("1"), t4("2"), t4("3")}, []string{"type=nvidia-222,order=2", "type=nvidia-228,order=1"},
			[]string{"1 nvidia-228 x2", "2 nvidia-222 x16", "3 nvidia-228 x2"}},
		"two V100": {[]sysfs.MdevParent{v100("1"), v100("2")}, []string{"type=nvidia-105", "type=nvidia-108"},
			[]string{"1 nvidia-105 x16", "2 nvidia-108 x4"}},
		"three T4 and two V100": {[]sysfs.MdevParent{t4("1"), t4("2"), t4("3"), v100("4"), v100("5")},
			[]string{"type=nvidia-105", "type=nvidia-108", "type=nvidia-222", "type=nvidia-228"},
			[]string{"1 nvidia-222 x16", "2 nvidia-228 x2", "3 nvidia-222 x16", "4 nvidia-105 x16", "5 nvidia-108 x4"}},
		"one card, the first is not supported": {[]sysfs.MdevParent{t4("1")}, []string{"type=nvidia-22", "type=nvidia-223", "type=nvidia-224"},
			[]string{"1 nvidia-223 x8"}},
		"by name":        {[]sysfs.MdevParent{t4("1")}, []string{`type="GRID T4-8A"`}, []string{"1 nvidia-228 x2"}},
		"by name with _": {[]sysfs.MdevParent{t4("1")}, []string{"type=GRID_T4-8A"}, []string{"1 nvidia-228 x2"}},
		"nothing wanted": {[]sysfs.MdevParent{t4("1")}, nil, nil},
		"only found":     {[]sysfs.MdevParent{t4("1")}, []string{"type=nvidia-222,manage=found"}, nil},
		"of others":      {[]sysfs.MdevParent{t4("1")}, []string{"type=nvidia-222,external=true"}, nil},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			p := Make(tt.cards, InForce(classes(t, tt.classes...), nil), Rules{Machine: "m", Held: none, Ours: none})
			if diff := cmp.Diff(tt.want, made(p.Create)); diff != "" {
				t.Errorf("(-want,+got)\n%s", diff)
			}
			if again := Make(tt.cards, InForce(classes(t, tt.classes...), nil), Rules{Machine: "m", Held: none, Ours: none}); !cmp.Equal(p.Create, again.Create) {
				t.Error("the plan is another one the second time")
			}
			if len(p.Remove) > 0 {
				t.Errorf("removes %v", p.Remove)
			}
		})
	}
	missing := Make([]sysfs.MdevParent{t4("1")}, InForce(classes(t, "type=nvidia-22", "type=nvidia-223"), nil), Rules{Held: none, Ours: none})
	if len(missing.Notes) != 1 || missing.Notes[0] != "data.vgpu.c0: type=nvidia-22: no card on this node supports it" {
		t.Errorf("notes = %q", missing.Notes)
	}
}

// withInstances is a card that carries instances of a type.
func withInstances(card sysfs.MdevParent, id string, n int) sysfs.MdevParent {
	for i := range n {
		card.Instances = append(card.Instances, sysfs.Mdev{UUID: Name("m", card.Name, id, i), Type: id, Group: 10 + i})
	}
	card.Types = slices.Clone(card.Types)
	for i := range card.Types {
		card.Types[i].Available = 0
	}
	return card
}

// TestReconfigure: instances that nobody wants any more go, those that are held stay with their card.
func TestReconfigure(t *testing.T) {
	ours := func(id string) bool { return true }
	held := func(card string) func(string) bool {
		return func(id string) bool { return id == Name("m", card, "nvidia-228", 1) }
	}
	cards := []sysfs.MdevParent{withInstances(t4("1"), "nvidia-228", 2), withInstances(t4("2"), "nvidia-228", 2)}
	p := Make(cards, InForce(classes(t, "type=nvidia-222"), nil), Rules{Machine: "m", Held: held("1"), Ours: ours})
	want := []string{Name("m", "1", "nvidia-228", 0), Name("m", "2", "nvidia-228", 0), Name("m", "2", "nvidia-228", 1)}
	if diff := cmp.Diff(want, p.Remove); diff != "" {
		t.Errorf("removed (-want,+got)\n%s", diff)
	}
	if len(p.Create) > 0 || len(p.Offer) > 0 {
		t.Errorf("creates %v, offers %v; want neither while the cards still carry instances", made(p.Create), made(p.Offer))
	}
	cards[1] = t4("2") // the second card is empty now
	p = Make(cards, InForce(classes(t, "type=nvidia-222"), nil), Rules{Machine: "m", Held: held("1"), Ours: ours})
	if diff := cmp.Diff([]string{"2 nvidia-222 x16"}, made(p.Create)); diff != "" {
		t.Errorf("created (-want,+got)\n%s", diff)
	}
	if off := Make(cards, nil, Rules{Machine: "m", Held: none, Ours: ours, Off: true}); len(off.Create)+len(off.Remove) > 0 {
		t.Errorf("switched off, it plans %+v", off)
	}
}

// TestInstancesOfOthers: what we did not make is never removed, is offered only by a class that says found, and its card is
// given no second type.
func TestInstancesOfOthers(t *testing.T) {
	card := withInstances(t4("1"), "nvidia-228", 1)
	for line, want := range map[string]int{"type=nvidia-228,manage=found": 1, "type=nvidia-228": 0, "type=nvidia-222": 0} {
		p := Make([]sysfs.MdevParent{card}, InForce(classes(t, line), nil), Rules{Machine: "m", Held: none, Ours: none})
		if len(p.Remove)+len(p.Create) > 0 || len(p.Offer) != want {
			t.Errorf("%s: removes %v, creates %v, offers %v; want %d offers", line, p.Remove, made(p.Create), made(p.Offer), want)
		}
	}
}

// TestLostInstancesComeBack: a card that lacks instances is filled again, under the names that are free.
func TestLostInstancesComeBack(t *testing.T) {
	card := withInstances(t4("1"), "nvidia-228", 2)
	card.Instances = card.Instances[1:]
	card.Types[3].Available = 1
	p := Make([]sysfs.MdevParent{card}, InForce(classes(t, "type=nvidia-228"), nil), Rules{Machine: "m", Held: none, Ours: func(string) bool { return true }})
	if len(p.Create) != 1 || p.Create[0].UUID != Name("m", "1", "nvidia-228", 0) || len(p.Offer) != 1 {
		t.Errorf("creates %+v, offers %v", p.Create, made(p.Offer))
	}
}

// TestOverride: on a node that a selector means, only classes with selectors count (devices.md 2.2).
func TestOverride(t *testing.T) {
	list := classes(t, "type=a,order=2", "type=b,order=1", "type=c,nodes=kubernetes.io/hostname:n2", "type=d,nodes=gpu")
	tests := map[string]struct {
		labels map[string]string
		want   string
	}{
		"nothing special": {nil, "b a"},
		"by name":         {map[string]string{"kubernetes.io/hostname": "n2"}, "c"},
		"by label":        {map[string]string{"gpu": "yes", "kubernetes.io/hostname": "n1"}, "d"},
		"both":            {map[string]string{"gpu": "", "kubernetes.io/hostname": "n2"}, "c d"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var types []string
			for _, c := range InForce(list, tt.labels) {
				types = append(types, c.Type)
			}
			if got := strings.Join(types, " "); got != tt.want {
				t.Errorf("types %q, want %q", got, tt.want)
			}
		})
	}
}

func TestNamesAreStable(t *testing.T) {
	const want = "a43974aa-fc44-5cfa-bae6-7a179fb1a6a8"
	if got := Name("machine", "0000:3b:00.0", "nvidia-222", 3); got != want {
		t.Errorf("Name = %s; want %s as in every version before, or kubelets hold units that are gone", got, want)
	}
}
