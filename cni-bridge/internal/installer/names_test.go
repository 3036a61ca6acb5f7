package installer

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestCompatNames: the binary is there under the names that the settings say, as long as they say so, and nobody else's
// program is touched (NW-073).
func TestCompatNames(t *testing.T) {
	root := t.TempDir()
	conf, bin, settings := filepath.Join(root, "net.d"), filepath.Join(root, "bin"), filepath.Join(root, "config")
	source := filepath.Join(root, "source")
	answer := "#!/bin/sh\necho '{\"cniVersion\":\"1.1.0\",\"supportedVersions\":[\"0.3.1\",\"1.0.0\"]}'\n"
	must(t, os.WriteFile(source, []byte(answer), 0o755))
	tree{"10-local.conflist": list}.write(t, conf)
	tree{"bridge": "somebody's"}.write(t, bin)
	salt := ""
	options := Options{
		Source: source, ConfDir: conf, BinDir: bin, StateDir: filepath.Join(root, "state"), SettingsDir: settings, MACSalt: &salt,
	}
	i, err := New(options)
	must(t, err)
	names := func() (links []string) {
		entries, err := os.ReadDir(bin)
		must(t, err)
		for _, entry := range entries {
			if target, err := os.Readlink(filepath.Join(bin, entry.Name())); err == nil {
				links = append(links, entry.Name()+" → "+target)
			}
		}
		return links
	}
	for _, row := range []struct {
		names string
		want  []string
		err   string
	}{
		{"", nil, ""},
		{"cnv-bridge,cnv-tuning", []string{"cnv-bridge → cni-bridge", "cnv-tuning → cni-bridge"}, ""},
		{"cnv-bridge, cni-bridge", []string{"cnv-bridge → cni-bridge"}, ""},
		{"cnv-tuning,bridge", []string{"cnv-tuning → cni-bridge"}, "network.compat-names: " + filepath.Join(bin, "bridge") + " is there already and is not ours"},
		{"cnv-bridge", []string{"cnv-bridge → cni-bridge"}, ""},
	} {
		tree{"network.compat-names": row.names}.write(t, settings)
		_, plan, err := i.Install(t.Context())
		if (err == nil) != (row.err == "") || err != nil && !strings.Contains(err.Error(), row.err) || len(plan.Write) != 1 {
			t.Errorf("%q: %v, plan %+v; want %q and the drop-in", row.names, err, plan, row.err)
		}
		if diff := cmp.Diff(row.want, names()); diff != "" {
			t.Errorf("%q: links (-want,+got)\n%s", row.names, diff)
		}
	}
	done, err := Uninstall(options, false)
	if left := readTree(t, bin); err != nil || len(left) != 1 || left["bridge"] != "somebody's" {
		t.Errorf("uninstalled %+v, %v; left %v", done, err, left)
	}
}
