package arch

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

func readFile(t *testing.T, name string) string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	return string(data)
}

// tests returns every test and benchmark of the repository, nested modules included, as "dir.TestName".
func tests(t *testing.T) map[string]bool {
	t.Helper()
	declared := regexp.MustCompile(`(?m)^func ((?:Test|Fuzz|Benchmark)\w*)\(`)
	found := map[string]bool{}
	err := filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || !strings.HasSuffix(path, "_test.go") {
			return err
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		dir, err := filepath.Rel(root, filepath.Dir(path))
		if err != nil {
			return err
		}
		for _, match := range declared.FindAllStringSubmatch(string(data), -1) {
			found[filepath.ToSlash(dir)+"."+match[1]] = true
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// TestRequirements checks docs/requirements.tsv: ID, state, tests (comma-separated "dir.TestName" or "make target"), note.
func TestRequirements(t *testing.T) {
	const columns = 4
	known, makefile := tests(t), readFile(t, "Makefile")
	id := regexp.MustCompile(`^(VM|SC|DP|ST|NW|MI|OP|CU)-\d{3}$`)
	seen := map[string]bool{}
	for i, line := range strings.Split(strings.TrimSuffix(readFile(t, "docs/requirements.tsv"), "\n"), "\n") {
		row := strings.Split(line, "\t")
		if len(row) != columns {
			t.Errorf("line %d has %d columns; want %d", i+1, len(row), columns)
			continue
		}
		if !id.MatchString(row[0]) || seen[row[0]] {
			t.Errorf("line %d: %s is no requirement ID or stands twice", i+1, row[0])
		}
		seen[row[0]] = true
		checkRow(t, row, known, makefile)
	}
}

func checkRow(t *testing.T, row []string, known map[string]bool, makefile string) {
	t.Helper()
	switch row[1] {
	case "done":
		if row[2] == "" {
			t.Errorf("%s is done by no test", row[0])
		}
	case "partial":
		if row[3] == "" {
			t.Errorf("%s is partial without a note that says what is missing", row[0])
		}
	case "absent":
	default:
		t.Errorf("%s: state %q is not one of done, partial, absent", row[0], row[1])
	}
	for name := range strings.SplitSeq(row[2], ",") {
		target, isTarget := strings.CutPrefix(name, "make ")
		switch {
		case name == "":
		case isTarget && !strings.Contains(makefile, "\n"+target+":"):
			t.Errorf("%s names %q, which the Makefile does not have", row[0], name)
		case !isTarget && !known[name]:
			t.Errorf("%s names the test %q, which does not exist", row[0], name)
		}
	}
}
