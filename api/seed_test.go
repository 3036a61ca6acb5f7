package api

import (
	"maps"
	"testing"
)

// TestKeysAloneMakeASeed: keys in /vm/ssh-keys need no files in /vm/cloud-init (VM-155).
func TestKeysAloneMakeASeed(t *testing.T) {
	keys, files := Path{Path: "/vm/ssh-keys/ops", Source: SourceFiles}, Path{Path: "/vm/cloud-init", Source: SourceFiles}
	for _, test := range []struct {
		name        string
		annotations map[string]string
		paths       []Path
		want        CloudInit
		overhead    MiB // beyond that of the VM without a seed
	}{
		{"nothing", nil, nil, CloudInitOff, 0},
		{"keys", nil, []Path{keys}, CloudInitNoCloud, OverheadDevice},
		{"keys and files", nil, []Path{keys, files}, CloudInitNoCloud, OverheadDevice},
		{"keys that are not wanted", map[string]string{KeySSHKeys: "off"}, []Path{keys}, CloudInitOff, OverheadDevice},
		{"no seed wanted", map[string]string{KeyCloudInit: "off"}, []Path{keys}, CloudInitOff, OverheadDevice},
	} {
		t.Run(test.name, func(t *testing.T) {
			pod := Pod{
				Namespace: "shop", Name: "db1", Labels: map[string]string{LabelVM: "db1"}, Annotations: map[string]string{KeyMemory: "1Gi"},
				Paths: []Path{{Path: "/vm/disks/root", Source: SourceImage, ReadOnly: true}},
			}
			bare, errs := Resolve(pod, Config{})
			if err := errs.Err(); err != nil {
				t.Fatal(err)
			}
			maps.Copy(pod.Annotations, test.annotations)
			pod.Paths = append(pod.Paths, test.paths...)
			got, errs := Resolve(pod, Config{})
			if err := errs.Err(); err != nil || got.Guest.CloudInit != test.want || got.Overhead-bare.Overhead != test.overhead {
				t.Errorf("cloud-init %q, %d MiB more, %v; want %q and %d", got.Guest.CloudInit, got.Overhead-bare.Overhead, err, test.want, test.overhead)
			}
		})
	}
}
