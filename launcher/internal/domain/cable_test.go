package domain

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const twoNICs = `<domain type="qemu"><devices>
<interface type="ethernet"><mac address="02:00:00:00:00:01"/><target dev="tap0" managed="no"/><model type="virtio-non-transitional"/>
 <driver name="qemu" queues="4"/><link state="down"/><mtu size="1450"/><alias name="ua-nic_default"/></interface>
<interface type="ethernet"><mac address="02:00:00:00:00:02"/><target dev="tap1" managed="no"/><alias name="ua-nic_net1"/></interface>
</devices></domain>`

func TestCables(t *testing.T) {
	got, err := Cables(twoNICs, []string{"default", "net1", "net7"})
	want := map[string]Cable{"default": {Up: false, Queues: 4}, "net1": {Up: true, Queues: 1}}
	if diff := cmp.Diff(want, got); diff != "" || err != nil {
		t.Errorf("%v (-want,+got)\n%s", err, diff)
	}
	if _, err := Cables("<domain", nil); err == nil {
		t.Error("half an XML was read")
	}
}

// TestSetLink: libvirt takes a change only where everything else stays as it is.
func TestSetLink(t *testing.T) {
	for name, up := range map[string]bool{"default": true, "net1": false} {
		xml, err := SetLink(twoNICs, name, up)
		if err != nil {
			t.Fatal(err)
		}
		cables, err := Cables("<domain><devices>"+xml+"</devices></domain>", []string{name})
		if err != nil || len(cables) != 1 || cables[name].Up != up {
			t.Errorf("%s is %+v, %v; want up %v", name, cables, err, up)
		}
		if name == "default" && (!strings.Contains(xml, `queues="4"`) || !strings.Contains(xml, `managed="no"`) || !strings.Contains(xml, `size="1450"`)) {
			t.Errorf("the rest has changed: %s", xml)
		}
	}
	if _, err := SetLink(twoNICs, "net7", true); err == nil {
		t.Error("there is no net7")
	}
}
