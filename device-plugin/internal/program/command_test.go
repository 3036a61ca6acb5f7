package program

import (
	"bytes"
	"encoding/json"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"sigs.k8s.io/yaml"

	"podvirt.dev/api"
	"podvirt.dev/internal/cli"
)

// The DaemonSet's arguments and mounts fit the program's flags.
func TestTheDaemonSetFitsTheFlags(t *testing.T) {
	text, err := os.ReadFile(filepath.Join(repository, "manifests/device-plugin/daemonset.yaml"))
	if err != nil {
		t.Fatal(err)
	}
	var object struct {
		Spec struct {
			Template struct{ Spec corev1.PodSpec }
		}
	}
	if err := yaml.Unmarshal(text, &object); err != nil {
		t.Fatal(err)
	}
	plugin := object.Spec.Template.Spec.Containers[0]
	args := slices.Clone(plugin.Args)
	for i := range args {
		args[i] = strings.NewReplacer("$(NODE_NAME)", "n", "$(POD_UID)", "u").Replace(args[i])
	}
	o, err := parseServe(args, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	mounted := map[string]bool{}
	for _, m := range plugin.VolumeMounts {
		mounted[m.MountPath] = !m.ReadOnly
	}
	for path, writable := range map[string]bool{
		o.dev: false, o.run: false, o.factsDir: false, o.cdiDir: true, o.pluginDir: true, o.seccompDir: true, o.hookDir: true,
		o.sys: true, filepath.Join(filepath.Dir(o.sys), "proc"): false, filepath.Dir(o.journal): true, filepath.Dir(o.podResources): false,
	} {
		if w, ok := mounted[path]; !ok || w != writable {
			t.Errorf("%s: mounted %v, writable %v; want writable %v", path, ok, w, writable)
		}
	}
}

func TestUsage(t *testing.T) {
	tests := map[string]struct {
		args []string
		code int
		want string
	}{
		"unknown flag":     {[]string{"--nope"}, exitUsage, "unknown flag: --nope"},
		"no node":          {nil, exitUsage, "flag --node-name is required"},
		"no instance":      {[]string{"--node-name=n"}, exitUsage, "flag --instance is required"},
		"bad ConfigMap":    {[]string{"--node-name=n", "--instance=u", "--config=x"}, exitUsage, `"x": want NAMESPACE/NAME`},
		"an argument":      {[]string{"serve"}, exitUsage, `unexpected argument "serve"`},
		"help":             {[]string{"--help"}, exitOK, "--node-name"},
		"list: bad format": {[]string{"list", "-o", "yaml"}, exitUsage, `"yaml": not one of text, json`},
		"list: argument":   {[]string{"list", "x"}, exitUsage, `unexpected argument "x"`},
		"list: help":       {[]string{"list", "--help"}, exitOK, "--facts-dir"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			var out bytes.Buffer
			code := Run(t.Context(), tt.args, cli.Streams{Out: &out, Err: &out})
			if code != tt.code || !strings.Contains(out.String(), tt.want) {
				t.Errorf("exit %d, %q; want %d, %q", code, out.String(), tt.code, tt.want)
			}
		})
	}
}

func TestList(t *testing.T) {
	dir := t.TempDir()
	var out, errs bytes.Buffer
	args := []string{"list", "-o", "json", "--dev=" + dir, "--run=" + dir, "--facts-dir=" + dir}
	if code := Run(t.Context(), args, cli.Streams{Out: &out, Err: &errs}); code != exitOK {
		t.Fatalf("exit %d: %s", code, &errs)
	}
	var lines []listed
	if err := json.Unmarshal(out.Bytes(), &lines); err != nil {
		t.Fatal(err)
	}
	notes := map[string]string{}
	for _, l := range lines {
		notes[l.Resource] = l.Note
	}
	if notes[api.ResourceKVM] != "no node facts in "+dir || notes[api.ResourceVhostNet] != "/dev/vhost-net is missing" || notes[api.ResourceMemlock] != "" {
		t.Errorf("notes = %v", notes)
	}
}
