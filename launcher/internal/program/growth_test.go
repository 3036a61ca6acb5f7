package program

import (
	"errors"
	"slices"
	"testing"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/domain"
	"podvirt.dev/launcher/internal/virt"
	"podvirt.dev/launcher/internal/virt/virttest"
)

// TestGrowth: each new size is told once, a refused one again later, and a QEMU that an earlier launcher started is told
// what there is, since nobody remembers what it knows.
func TestGrowth(t *testing.T) {
	list := []domain.Disk{
		{Options: api.Disk{Name: "data", Path: "/vm/disks/data"}, Source: "/vm/disks/data/disk.img", Format: "raw"},
		{Options: api.Disk{Name: "tmp", Empty: 1 << 30}, Source: "/vm/scratch/tmp.qcow2", Format: "qcow2"},
	}
	dom, _ := virttest.New()
	if err := dom.Start(); err != nil {
		t.Fatal(err)
	}
	pid, size, failure := 7, int64(100<<20), error(nil)
	var told []string
	g := &growth{
		disks:  func() (int, []domain.Disk) { return pid, list },
		domain: func() (virt.Domain, error) { return refusing{dom, &failure}, nil },
		size:   func(domain.Disk) (int64, error) { return size, nil },
		tell:   func(reason, message string) { told = append(told, reason+": "+message) },
	}
	now := time.Now()
	look := func(after time.Duration) {
		now = now.Add(after)
		g.look(t.Context(), now)
	}
	expect := func(what string, want ...string) {
		t.Helper()
		if got := dom.Calls()[1:]; !slices.Equal(got, want) {
			t.Errorf("%s: QEMU was told %q; want %q", what, got, want)
		}
	}
	look(time.Second)
	expect("at the start")
	size = 200 << 20
	look(time.Second)
	look(time.Second)
	first := "resize /vm/disks/data/disk.img 209715200"
	expect("grown", first)
	failure, size = errors.New("busy"), 300<<20
	look(time.Second)
	failure = nil
	look(time.Second)
	expect("refused a moment ago", first)
	look(resizeRetry)
	second := "resize /vm/disks/data/disk.img 314572800"
	expect("asked again", first, second)
	pid, size = 8, 400<<20
	look(time.Second)
	expect("a new QEMU knows it", first, second)

	g = &growth{adopted: true, disks: g.disks, domain: g.domain, size: g.size, tell: g.tell}
	look(time.Second)
	look(time.Second)
	expect("adopted", first, second, "resize /vm/disks/data/disk.img 419430400")
	if want := []string{"Resized: disk data has grown to 200 MiB", "Resized: disk data has grown to 300 MiB"}; !slices.Equal(told, want) {
		t.Errorf("told %q; want %q", told, want)
	}
}

// refusing fails to resize as long as it is told to.
type refusing struct {
	*virttest.Domain
	failure *error
}

func (r refusing) ResizeDisk(source string, size int64) error {
	if *r.failure != nil {
		return *r.failure
	}
	return r.Domain.ResizeDisk(source, size)
}
