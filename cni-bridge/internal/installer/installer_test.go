package installer

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containernetworking/cni/libcni"
	"github.com/google/go-cmp/cmp"

	"podvirt.dev/cni-bridge/internal/journal"
	"podvirt.dev/internal/require"
)

const (
	list      = `{"cniVersion": "1.0.0", "name": "local", "plugins": [{"type": "ptp"}, {"type": "portmap"}]}`
	inlined   = `{"cniVersion": "1.1.0", "name": "local", "loadOnlyInlinedPlugins": true, "plugins": [{"type": "ptp"}]}`
	thick     = `{"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus-shim", "capabilities": {"portMappings": true}}`
	thin      = `{"cniVersion": "0.3.1", "name": "multus-cni-network", "type": "multus", "delegates": [{"type": "ptp"}]}`
	single    = `{"cniVersion": "0.3.1", "name": "old", "type": "bridge"}`
	ourStage  = `{"type":"cni-bridge","mode":"pod"}`
	dropInOld = `{"type":"cni-bridge","mode":"pod","macSalt":"old"}`
)

// tree is a directory as path → content.
type tree map[string]string

func (want tree) write(t *testing.T, dir string) {
	t.Helper()
	for name, content := range want {
		path := filepath.Join(dir, name)
		must(t, os.MkdirAll(filepath.Dir(path), 0o755))
		must(t, os.WriteFile(path, []byte(content), 0o644))
	}
}

func readTree(t *testing.T, dir string) tree {
	t.Helper()
	got := tree{}
	must(t, filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		data, err := os.ReadFile(path)
		name, _ := filepath.Rel(dir, path)
		got[name] = string(data)
		return err
	}))
	return got
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// TestEachCase is the table of network.md 2.5; libcni loads each result as a runtime does, and removal restores the
// directory byte for byte.
func TestEachCase(t *testing.T) {
	for name, row := range map[string]struct {
		before tree
		method Method
		want   Method
		chain  []string // types that libcni then calls, of the first file
		err    error
		says   string
	}{
		"list": {before: tree{"10-local.conflist": list}, want: MethodDropIn, chain: []string{"ptp", "portmap", "cni-bridge"}},
		"list beside others": {before: tree{"10-local.conflist": list, "20-b.conflist": strings.ReplaceAll(list, "local", "b"), "README": "x"},
			want: MethodDropIn, chain: []string{"ptp", "portmap", "cni-bridge"}},
		"Multus' own list": {before: tree{"00-multus.conflist": strings.ReplaceAll(list, "ptp", "multus")}, want: MethodDropIn,
			chain: []string{"multus", "portmap", "cni-bridge"}},
		"somebody else's drop-in stays": {before: tree{"10-local.conflist": list, "local/50-other.conf": `{"type":"other"}`},
			want: MethodDropIn, chain: []string{"ptp", "portmap", "other", "cni-bridge"}},
		"thick Multus": {before: tree{multusName: thick, "10-local.conflist": list}, want: MethodWrap, chain: []string{"multus-shim", "cni-bridge"}},
		"thin Multus": {before: tree{multusName: thin, "10-local.conflist": list}, err: ErrCannotChain,
			says: "set --cni-version=1.0.0 (then it writes a list) or --multus-master-cni-file-name"},
		"thin Multus with a named master": {before: tree{multusName: thin}, method: MethodWrap, want: MethodWrap, chain: []string{"multus", "cni-bridge"}},
		"only inlined plugins":            {before: tree{"10-local.conflist": inlined}, want: MethodEdit, chain: []string{"ptp", "cni-bridge"}},
		"runtime without drop-ins": {before: tree{"10-local.conflist": list}, method: MethodEdit, want: MethodEdit,
			chain: []string{"ptp", "portmap", "cni-bridge"}},
		"drop-in where it is not read": {before: tree{"10-local.conflist": inlined}, method: MethodDropIn, err: ErrCannotChain, says: "use method edit"},
		"single configuration":         {before: tree{"10-old.conf": single}, err: ErrCannotChain, says: "write it as a list"},
		"wrap without Multus":          {before: tree{"10-local.conflist": list}, method: MethodWrap, err: ErrCannotChain, says: "method wrap is for 00-multus.conf"},
		"name that is a path": {before: tree{"10-local.conflist": strings.ReplaceAll(list, `"local"`, `"../../x"`)}, err: ErrCannotChain,
			says: "not the name of a network"},
		"nothing yet": {before: tree{}, err: ErrNoNetwork},
		"off":         {before: tree{"10-local.conflist": list}, method: MethodOff, chain: []string{"ptp", "portmap"}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			row.before.write(t, dir)
			if row.method == "" {
				row.method = MethodAuto
			}
			for round := range 2 { // the second one changes nothing
				plan, err := MakePlan(dir, row.method, []byte(ourStage))
				if !errors.Is(err, row.err) || err != nil && !strings.Contains(err.Error(), row.says) || err == nil && plan.Method != row.want {
					t.Fatalf("plan %q, %v; want %q, %v %s", plan.Method, err, row.want, row.err, row.says)
				}
				changed, err := Apply(dir, plan)
				must(t, err)
				if round == 1 && len(changed) > 0 {
					t.Errorf("the second round changed %v", changed)
				}
			}
			if row.chain != nil {
				if diff := cmp.Diff(row.chain, loaded(t, dir)); diff != "" {
					t.Errorf("chain (-want,+got)\n%s", diff)
				}
			}
			_, err := Remove(dir)
			must(t, err)
			if diff := cmp.Diff(row.before, readTree(t, dir)); diff != "" {
				t.Errorf("directory after removal (-before,+after)\n%s", diff)
			}
		})
	}
}

// loaded returns the types of the chain that a runtime with drop-ins finds: the first file by name.
func loaded(t *testing.T, dir string) []string {
	t.Helper()
	files, err := libcni.ConfFiles(dir, []string{".conf", ".conflist", ".json"})
	must(t, err)
	conf, err := libcni.NetworkConfFromFile(files[0])
	must(t, err)
	var types []string
	for _, plugin := range conf.Plugins {
		types = append(types, plugin.Network.Type)
	}
	return types
}

// TestSettingsReachTheChain changes podvirt-config under a running installer: the next ADD already has it.
func TestSettingsReachTheChain(t *testing.T) {
	o := options(t)
	o.SettingsDir = t.TempDir()
	tree{"10-local.conflist": list}.write(t, o.ConfDir)
	node, err := New(o)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- node.Run(ctx) }()
	dropIn := filepath.Join(o.ConfDir, "local", dropInName)
	if !appears(dropIn, 2*time.Second) {
		t.Fatal("not installed")
	}
	tree{"launcher.port-base": "50000"}.write(t, o.SettingsDir)
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(5 * time.Second); ; <-ticker.C {
		data, err := os.ReadFile(dropIn)
		if err == nil && strings.Contains(string(data), "50000-50003/tcp") {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("the chain has %s, %v", data, err)
		}
	}
	cancel()
	must(t, <-done)
}

func TestChangesOfOthersAreFollowed(t *testing.T) {
	for name, row := range map[string]struct {
		before, after tree // by the CNI's own agent, on top of an installation
		remove        []string
		want          tree
	}{
		"drop-in lost":                {before: tree{"10-local.conflist": list}, remove: []string{"local/90-podvirt.conf"}},
		"drop-in truncated":           {before: tree{"10-local.conflist": list}, after: tree{"local/90-podvirt.conf": ""}},
		"drop-in of an older version": {before: tree{"10-local.conflist": list}, after: tree{"local/90-podvirt.conf": dropInOld}},
		"network renamed": {before: tree{"10-local.conflist": list}, after: tree{"10-local.conflist": strings.ReplaceAll(list, "local", "new")},
			want: tree{"10-local.conflist": strings.ReplaceAll(list, "local", "new"), "new/90-podvirt.conf": ourStage}},
		"another CNI before": {before: tree{"10-local.conflist": list}, after: tree{"05-b.conflist": strings.ReplaceAll(list, "local", "b")},
			want: tree{"10-local.conflist": list, "05-b.conflist": strings.ReplaceAll(list, "local", "b"), "b/90-podvirt.conf": ourStage}},
		"thick Multus gone": {before: tree{multusName: thick, "10-local.conflist": list}, remove: []string{multusName},
			want: tree{"10-local.conflist": list, "local/90-podvirt.conf": ourStage}},
		"thick Multus rewritten": {before: tree{multusName: thick}, after: tree{multusName: strings.ReplaceAll(thick, "portMappings", "bandwidth")}},
		"edited list rewritten":  {before: tree{"10-local.conflist": inlined}, after: tree{"10-local.conflist": strings.ReplaceAll(inlined, "ptp", "new")}},
		"half written list": {before: tree{"10-local.conflist": list}, after: tree{"10-local.conflist": list[:20]},
			want: tree{"10-local.conflist": list[:20], "local/90-podvirt.conf": ourStage}},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			row.before.write(t, dir)
			install := func() {
				plan, _ := MakePlan(dir, MethodAuto, []byte(ourStage))
				_, err := Apply(dir, plan)
				must(t, err)
			}
			install()
			installed := readTree(t, dir)
			row.after.write(t, dir)
			for _, name := range row.remove {
				must(t, os.Remove(filepath.Join(dir, name)))
			}
			install()
			got := readTree(t, dir)
			switch {
			case row.want != nil:
				if diff := cmp.Diff(row.want, got); diff != "" {
					t.Errorf("directory (-want,+got)\n%s", diff)
				}
			case strings.Contains(name, "rewritten"):
				if types := loaded(t, dir); types[len(types)-1] != "cni-bridge" || strings.Count(fmt.Sprint(types), "cni-bridge") != 1 {
					t.Errorf("chain %v; want cni-bridge once, at the end", types)
				}
				if _, err := Remove(dir); err != nil {
					t.Fatal(err)
				}
				if diff := cmp.Diff(row.after, readTree(t, dir)); diff != "" && name != "edited list rewritten" {
					t.Errorf("directory after removal (-want,+got)\n%s", diff)
				}
			default:
				if diff := cmp.Diff(installed, got); diff != "" {
					t.Errorf("directory after repair (-want,+got)\n%s", diff)
				}
			}
		})
	}
}

// program builds something that answers VERSION as the plugin does.
func program(t *testing.T, script string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cni-bridge")
	must(t, os.WriteFile(path, []byte("#!/bin/sh\n"+script+"\n"), 0o755))
	return path
}

const answers = `echo '{"cniVersion":"1.1.0","supportedVersions":["0.3.1","1.0.0","1.1.0"]}'`

func TestBinaryIsTriedBeforeItIsInstalled(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "bin")
	installed := filepath.Join(dir, "cni-bridge")
	for _, row := range []struct {
		name, source string
		changed      bool
		says         string
	}{
		{"new", program(t, answers), true, ""},
		{"another one", program(t, answers+"\n# newer"), true, ""},
		{"does not run", program(t, "exit 1"), false, "the installed one stays"},
		{"is something else", program(t, "echo hello"), false, "the installed one stays"},
		{"is for another machine", wrongArchitecture(t), false, "the installed one stays"},
	} {
		t.Run(row.name, func(t *testing.T) {
			before, _ := os.ReadFile(installed)
			changed, err := InstallBinary(t.Context(), row.source, dir)
			if changed != row.changed || (err == nil) != (row.says == "") || err != nil && !strings.Contains(err.Error(), row.says) {
				t.Fatalf("changed %v, %v; want %v, %q", changed, err, row.changed, row.says)
			}
			after, err := os.ReadFile(installed)
			must(t, err)
			if !row.changed && string(after) != string(before) {
				t.Error("the installed program was changed")
			}
			if left, _ := filepath.Glob(filepath.Join(dir, ".*")); len(left) > 0 {
				t.Errorf("left behind: %v", left)
			}
			if changed, err := InstallBinary(t.Context(), installed, dir); changed || err != nil {
				t.Errorf("the same program again: %v, %v", changed, err)
			}
		})
	}
}

func wrongArchitecture(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "cni-bridge")
	must(t, os.WriteFile(path, []byte("\x7fELF\x02\x01\x01 not for this machine"), 0o755))
	return path
}

func options(t *testing.T) Options {
	t.Helper()
	root, salt := t.TempDir(), "salt"
	o := Options{
		Source: program(t, answers), ConfDir: filepath.Join(root, "net.d"), BinDir: filepath.Join(root, "bin"),
		StateDir: filepath.Join(root, "state"), MACSalt: &salt,
	}
	must(t, os.MkdirAll(o.ConfDir, 0o755))
	return o
}

// TestRunRepairs deletes the drop-in and the binary again and again while the installer runs.
func TestRunRepairs(t *testing.T) {
	o := options(t)
	tree{"10-local.conflist": list}.write(t, o.ConfDir)
	node, err := New(o)
	must(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- node.Run(ctx) }()
	dropIn, binary := filepath.Join(o.ConfDir, "local", dropInName), filepath.Join(o.BinDir, "cni-bridge")
	for round := range 4 {
		for _, path := range []string{dropIn, binary} {
			if !appears(path, 2*time.Second) {
				t.Fatalf("round %d: %s did not come back", round, path)
			}
		}
		must(t, os.Remove([]string{dropIn, binary}[round%2]))
	}
	if !appears(binary, 2*time.Second) || !appears(dropIn, 2*time.Second) {
		t.Error("not repaired")
	}
	must(t, Check(o.StateDir))
	cancel()
	must(t, <-done)
	if _, err := os.Stat(dropIn); err != nil {
		t.Errorf("after the end: %v; want everything to stay", err)
	}
}

func appears(path string, patience time.Duration) bool {
	ticker := time.NewTicker(10 * time.Millisecond)
	defer ticker.Stop()
	for deadline := time.Now().Add(patience); time.Now().Before(deadline); <-ticker.C {
		if _, err := os.Stat(path); err == nil {
			return true
		}
	}
	return false
}

func TestUninstallLeavesTheNodeAsItWas(t *testing.T) {
	o := options(t)
	tree{"10-local.conflist": list, "20-x.conflist": inlined}.write(t, o.ConfDir)
	before := readTree(t, filepath.Dir(o.ConfDir))
	node, err := New(o)
	must(t, err)
	_, _, err = node.Install(t.Context())
	must(t, err)

	store := journal.New(o.StateDir)
	must(t, store.Save(journal.Entry{ContainerID: "c1", IfName: "eth0", Namespace: "shop", Pod: "web-0"}))
	if _, err := Uninstall(o, false); !errors.Is(err, ErrInUse) || !strings.Contains(err.Error(), "shop/web-0") {
		t.Errorf("uninstall with a VM = %v; want ErrInUse naming it", err)
	}
	done, err := Uninstall(o, true)
	must(t, err)
	if len(done.Kept) != 1 || !strings.Contains(done.Kept[0], "1 VM Pods still run") {
		t.Errorf("forced uninstall keeps %v; want it to say what is left", done.Kept)
	}
	if _, err := os.Stat(filepath.Join(o.BinDir, "cni-bridge")); err != nil {
		t.Errorf("the plugin of a running VM: %v; want it kept", err)
	}
	must(t, store.Remove("c1", "eth0"))
	_, err = Uninstall(o, false)
	must(t, err)
	if diff := cmp.Diff(before, readTree(t, filepath.Dir(o.ConfDir))); diff != "" {
		t.Errorf("node (-before,+after)\n%s", diff)
	}
	if _, err := Uninstall(o, false); err != nil {
		t.Errorf("uninstall twice: %v", err)
	}
}

func TestSettingsReachTheStage(t *testing.T) {
	dir := t.TempDir()
	tree{
		"network.default-binding": "masquerade", "network.v4-cidr": "172.31.0.0/24",
		"network.install-method": "edit", "..data/ignored": "x",
	}.write(t, dir)
	got, err := ReadSettings(dir)
	must(t, err)
	if got.Method != MethodEdit || got.Stage.V4CIDR != "172.31.0.0/24" || got.Stage.DefaultBinding != "masquerade" {
		t.Errorf("settings %+v", got)
	}
	tree{"network.v4-cidr": "nonsense"}.write(t, dir)
	if _, err := ReadSettings(dir); err == nil {
		t.Error("a wrong setting was taken")
	}
	if got, err := ReadSettings(filepath.Join(dir, "absent")); err != nil || got.Method != MethodAuto {
		t.Errorf("no settings: %+v, %v; want the defaults", got, err)
	}
}

func TestSaltIsNeededBeforeAnythingIsWritten(t *testing.T) {
	o := options(t)
	o.MACSalt = nil
	tree{"10-local.conflist": list}.write(t, o.ConfDir)
	node, err := New(o)
	must(t, err)
	if _, _, err := node.Install(t.Context()); err == nil || !strings.Contains(err.Error(), "salt of derived MACs") {
		t.Errorf("install without API server = %v", err)
	}
	if diff := cmp.Diff(tree{"10-local.conflist": list}, readTree(t, o.ConfDir)); diff != "" {
		t.Errorf("directory (-want,+got)\n%s", diff)
	}
}

// TestReloadIsSeen proves that a watcher of the configuration directory alone hears of a drop-in one level below.
func TestReloadIsSeen(t *testing.T) {
	_, err := exec.LookPath("sh")
	require.Feature(t, err == nil, "sh")
	dir := t.TempDir()
	tree{"10-local.conflist": list}.write(t, dir)
	events := watchRenames(t, dir)
	plan, err := MakePlan(dir, MethodAuto, []byte(ourStage))
	must(t, err)
	_, err = Apply(dir, plan)
	must(t, err)
	select {
	case <-events:
	case <-time.After(2 * time.Second):
		t.Error("no rename or removal was seen")
	}
}
