package arch

import (
	"go/ast"
	"go/parser"
	"go/token"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// command is one go test of a make target.
type command struct {
	target, dir string
	pattern     string // of -run, or of -fuzz where that is what it is for
	long        bool   // with PODVIRT_LONG=1
}

// commands are those of the Makefile that choose tests of one package.
func commands(t *testing.T) []command {
	t.Helper()
	pattern, dir := regexp.MustCompile(`-(?:run|fuzz)='?(\S+?)'?(?:\s|$)`), regexp.MustCompile(`\s\./(\S+)\s*$`)
	target := ""
	var found []command
	for line := range strings.Lines(strings.ReplaceAll(readFile(t, "Makefile"), "\\\n", "")) {
		if name, _, ok := strings.Cut(line, ":"); ok && !strings.HasPrefix(line, "\t") {
			target = name
		}
		where := dir.FindStringSubmatch(line)
		if where == nil || !strings.HasPrefix(line, "\t") {
			continue
		}
		for _, run := range pattern.FindAllStringSubmatch(strings.ReplaceAll(line, "$$", "$"), -1) {
			if run[1] != "^$" {
				found = append(found, command{target: target, dir: where[1], pattern: run[1], long: strings.Contains(line, "PODVIRT_LONG=1 ")})
			}
		}
	}
	return found
}

// runs says whether a test of the package is among those that the command runs.
func (c command) runs(dir, test string) bool {
	return c.dir == dir && regexp.MustCompile(c.pattern).MatchString(test)
}

// TestTargetsNameTests: a name in a make target that no test has runs nothing, and nobody notices.
func TestTargetsNameTests(t *testing.T) {
	known := tests(t)
	all := commands(t)
	if len(all) < 5 {
		t.Fatalf("only %d commands found in the Makefile", len(all))
	}
	for _, c := range all {
		for name := range strings.SplitSeq(strings.Trim(c.pattern, "^()$"), "|") {
			one, there := command{dir: c.dir, pattern: strings.Replace(c.pattern, strings.Trim(c.pattern, "^()$"), name, 1)}, false
			for full := range known {
				dot := strings.LastIndex(full, ".")
				there = there || one.runs(full[:dot], full[dot+1:])
			}
			if !there {
				t.Errorf("make %s runs %s of %s, which does not exist", c.target, name, c.dir)
			}
		}
	}
}

// TestLongTestsAreRun: what make test leaves to a target is in what that target runs.
func TestLongTestsAreRun(t *testing.T) {
	all, count := commands(t), 0
	for dir, gates := range map[string][]string{"test/cluster/suite": {"long"}, "test/launcher": {"stress"}} {
		for _, left := range leftTo(t, dir, gates) {
			count++
			if !slices.ContainsFunc(all, func(c command) bool {
				return c.target == left.target && c.runs(dir, left.test) && (c.long || left.gate != "long")
			}) {
				t.Errorf("%s.%s says that make %s runs it, which it does not", dir, left.test, left.target)
			}
		}
	}
	if count < 10 {
		t.Errorf("only %d tests are left to a make target; the search has gone blind", count)
	}
}

// left is a test that says which target runs it.
type left struct{ test, gate, target string }

// leftTo returns the tests of a package that call one of the functions with t and the name of a target.
func leftTo(t *testing.T, dir string, gates []string) []left {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, dir, "*_test.go"))
	if err != nil {
		t.Fatal(err)
	}
	var found []left
	for _, file := range files {
		source, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), file, source, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		for _, declared := range parsed.Decls {
			function, ok := declared.(*ast.FuncDecl)
			if !ok {
				continue
			}
			ast.Inspect(function, func(n ast.Node) bool {
				if gate, target := gateOf(n, gates); gate != "" {
					found = append(found, left{test: function.Name.Name, gate: gate, target: target})
				}
				return true
			})
		}
	}
	return found
}

// gateOf returns the function and the target where the node is such a call.
func gateOf(n ast.Node, gates []string) (gate, target string) {
	call, ok := n.(*ast.CallExpr)
	if !ok || len(call.Args) < 2 {
		return "", ""
	}
	name, ok := call.Fun.(*ast.Ident)
	text, literal := call.Args[1].(*ast.BasicLit)
	if !ok || !literal || !slices.Contains(gates, name.Name) {
		return "", ""
	}
	value, err := strconv.Unquote(text.Value)
	if err != nil {
		return "", ""
	}
	return name.Name, strings.TrimPrefix(value, "make ")
}
