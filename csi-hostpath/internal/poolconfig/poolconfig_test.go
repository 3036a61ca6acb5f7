package poolconfig

import (
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const root = "/var/lib/podvirt"

func TestParseFillsInDefaults(t *testing.T) {
	got, err := Parse(`
- {name: fast, device: /dev/disk/by-id/nvme-1, nodeSelector: {disk: nvme}, default: true}
- {name: bulk, path: /var/lib/podvirt/pools/bulk, overcommit: 2.0, reserve: 10Gi, hardSize: image, allowShared: true}
`, root)
	if err != nil {
		t.Fatal(err)
	}
	want := []Pool{
		{
			Name: "fast", Device: "/dev/disk/by-id/nvme-1", NodeSelector: map[string]string{"disk": "nvme"}, Format: "xfs",
			Overcommit: 1, Reserve: Amount{Percent: 5}, HardSize: "auto", CacheSize: Amount{Percent: 10}, Default: true,
		},
		{
			Name: "bulk", Path: "/var/lib/podvirt/pools/bulk", Format: "xfs",
			Overcommit: 2, Reserve: Amount{Bytes: 10 << 30}, HardSize: "image", AllowShared: true, CacheSize: Amount{Percent: 10},
		},
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("pools (-want,+got):\n%s", diff)
	}
}

func TestParseErrors(t *testing.T) {
	for name, test := range map[string]struct {
		text string
		want []string
	}{
		"unknown key":     {`[{name: a, pol: x, path: /var/lib/podvirt/a}]`, []string{`data.storage.pools: [0].pol: unknown key; nearest: path`}},
		"no backing":      {`[{name: a}]`, []string{`data.storage.pools: [0]: exactly one of path, device, pvcTemplate`}},
		"two backings":    {`[{name: a, path: /var/lib/podvirt/a, device: /dev/sdb}]`, []string{`[0]: exactly one of path, device, pvcTemplate`}},
		"outside":         {`[{name: a, path: /data}]`, []string{`[0].path: "/data" is not below /var/lib/podvirt`}},
		"outside by dots": {`[{name: a, path: /var/lib/podvirt/../x}]`, []string{`[0].path: "/var/lib/x" is not below /var/lib/podvirt`}},
		"the root itself": {`[{name: a, path: /var/lib/podvirt}]`, []string{`is not below`}},
		"same name":       {`[{name: a, path: /var/lib/podvirt/a}, {name: a, path: /var/lib/podvirt/b}]`, []string{`[1].name: "a" is used twice`}},
		"format":          {`[{name: a, device: /dev/sdb, format: zfs}]`, []string{`[0].format: "zfs": xfs, btrfs, ext4, none`}},
		"overcommit":      {`[{name: a, path: /var/lib/podvirt/a, overcommit: 0.5}]`, []string{`[0].overcommit: 0.5: 1.0 or more`}},
		"reserve":         {`[{name: a, path: /var/lib/podvirt/a, reserve: 10 pct}]`, []string{`[0].reserve: "10 pct": a quantity or percent`}},
		"not a list":      {`name: a`, []string{`data.storage.pools: not a YAML list of pools`}},
		"all errors at once": {`[{name: A_, path: x}, {path: /var/lib/podvirt/b}]`, []string{
			`[0].name: "A_" is not a DNS label`, `[0].path: "x" is not an absolute path`, `[1].name: required`,
		}},
		"a template that is 1": {`[{name: a, pvcTemplate: 1}]`, []string{`[0].pvcTemplate: not a PersistentVolumeClaim spec`}},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := Parse(test.text, root)
			for _, want := range test.want {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error = %v; want it to say %q", err, want)
				}
			}
		})
	}
}

func TestForNode(t *testing.T) {
	pools, err := Parse(`
- {name: fast, path: /var/lib/podvirt/fast, nodeSelector: {disk: nvme}, default: true}
- {name: bulk, path: /var/lib/podvirt/bulk, default: true}
`, root)
	if err != nil {
		t.Fatal(err)
	}
	here, err := ForNode(pools, "n1", map[string]string{"disk": "hdd"})
	if err != nil || len(here) != 1 || here[0].Name != "bulk" {
		t.Errorf("pools on a node without nvme = %v, %v; want bulk alone", here, err)
	}
	_, err = ForNode(pools, "n1", map[string]string{"disk": "nvme"})
	if err == nil || !strings.Contains(err.Error(), "fast and bulk are both default on node n1") {
		t.Errorf("error = %v; want two defaults named", err)
	}
}
