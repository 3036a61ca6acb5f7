package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

const (
	root   = "../.."
	module = "podvirt.dev/"
)

// components are the binaries of the product; they share data by way of api/, never code.
var components = []string{"cni-bridge", "controller", "csi-hostpath", "device-plugin", "kubectl-vm", "launcher", "scheduler"}

// goFile is one parsed source file of the root module.
type goFile struct {
	path string // relative to the repository
	dir  string
	file *ast.File
}

// sources returns every Go file of the root module; nested modules are left out.
func sources(t *testing.T) []goFile {
	t.Helper()
	var files []goFile
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		if d.IsDir() {
			if rel != "." && (nestedModule(path) || strings.HasPrefix(d.Name(), ".") || d.Name() == "testdata") {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		files = append(files, goFile{path: rel, dir: filepath.ToSlash(filepath.Dir(rel)), file: parsed})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return files
}

func nestedModule(dir string) bool {
	matches, err := filepath.Glob(filepath.Join(dir, "go.mod"))
	return err == nil && len(matches) > 0
}

func imports(f goFile) []string {
	var paths []string
	for _, spec := range f.file.Imports {
		if path, err := strconv.Unquote(spec.Path.Value); err == nil {
			paths = append(paths, path)
		}
	}
	return paths
}

func component(dir string) string {
	first, _, _ := strings.Cut(dir, "/")
	for _, name := range components {
		if first == name {
			return name
		}
	}
	return ""
}

// rule forbids some imports to some files.
type rule struct {
	why     string
	forbids func(f goFile, path string) bool
}

// only returns a rule that leaves an import to one place: a folder or a file.
func only(place string, imported func(path string) bool) rule {
	return rule{"only " + place + " imports it", func(f goFile, path string) bool {
		return imported(path) && f.dir != place && f.path != place
	}}
}

func exactly(want string) func(string) bool {
	return func(path string) bool { return path == want }
}

// ownFolder returns the folder of an import that is ours, or "".
func ownFolder(path string) string {
	own, _ := strings.CutPrefix(path, module)
	if own == path {
		return ""
	}
	return own
}

func importRules() []rule {
	return []rule{
		only("scheduler/main.go", func(path string) bool { return strings.HasPrefix(path, "k8s.io/kubernetes/") }),
		only("launcher/internal/virt/libvirt", exactly("libvirt.org/go/libvirt")),
		only("internal/nl", exactly("github.com/vishvananda/netlink")),
		{"components share data, not code", func(f goFile, path string) bool {
			from, to := component(f.dir), component(ownFolder(path))
			return from != "" && to != "" && from != to
		}},
		{"internal/ never imports a component", func(f goFile, path string) bool {
			return strings.HasPrefix(f.dir, "internal/") && component(ownFolder(path)) != ""
		}},
		{"the contract stands on nothing of ours", func(f goFile, path string) bool {
			own := ownFolder(path)
			return f.dir == "api" && own != "" && !strings.HasPrefix(own, "api")
		}},
		{"internal/sysfs stands on the standard library", func(f goFile, path string) bool {
			own := ownFolder(path)
			return f.dir == "internal/sysfs" && own != "" && !strings.HasPrefix(own, "internal/sysfs") // its tests use both
		}},
	}
}

// forbidden says why a file may not import a path, or "".
func forbidden(f goFile, path string) string {
	for _, r := range importRules() {
		if r.forbids(f, path) {
			return r.why
		}
	}
	return ""
}

func TestImportDirection(t *testing.T) {
	for _, f := range sources(t) {
		if f.dir == "internal/deps" {
			continue
		}
		for _, path := range imports(f) {
			if why := forbidden(f, path); why != "" {
				t.Errorf("%s imports %s: %s", f.path, path, why)
			}
		}
	}
}

func TestForbiddenRefusesWhatItShould(t *testing.T) {
	tests := map[string]struct {
		dir, file, path string
		want            bool
	}{
		"component to component": {"launcher/internal/x", "a.go", module + "scheduler/internal/y", true},
		"component to internal":  {"launcher/internal/x", "a.go", module + "internal/nl", false},
		"internal to component":  {"internal/nl", "a.go", module + "cni-bridge/internal/x", true},
		"kubernetes in plugin":   {"scheduler/internal/x", "a.go", "k8s.io/kubernetes/pkg/x", true},
		"kubernetes in main":     {"scheduler", "main.go", "k8s.io/kubernetes/cmd/kube-scheduler/app", false},
		"raw netlink":            {"cni-bridge/internal/x", "a.go", "github.com/vishvananda/netlink", true},
		"contract to internal":   {"api", "a.go", module + "internal/cli", true},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			got := forbidden(goFile{path: tt.dir + "/" + tt.file, dir: tt.dir}, tt.path)
			if (got != "") != tt.want {
				t.Errorf("forbidden = %q; want refused = %v", got, tt.want)
			}
		})
	}
}

func TestPackagesAreDocumented(t *testing.T) {
	documented := map[string]bool{}
	for _, f := range sources(t) {
		if strings.HasSuffix(f.path, "_test.go") {
			continue
		}
		documented[f.dir] = documented[f.dir] || f.file.Doc != nil
	}
	for dir, ok := range documented {
		if !ok {
			t.Errorf("%s has no package comment", dir)
		}
	}
}

func TestMainsAreShort(t *testing.T) {
	for _, name := range components {
		for _, f := range sources(t) {
			if f.path != name+"/main.go" {
				continue
			}
			if lines := strings.Count(readFile(t, f.path), "\n"); lines > 40 {
				t.Errorf("%s has %d lines; at most 40", f.path, lines)
			}
		}
	}
}
