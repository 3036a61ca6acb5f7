// Package podenv learns from inside container vm what its Pod is: names, annotations and labels from the downward API
// volume at /vm/pod, wanted limits from there and from the cgroup, and what is mounted below /vm (spec vm.md 2.4).
//
// Everything is read through one file system with the root directory of the container, so it is tested on trees of
// files. The result is an [api.Pod], which package api turns into a machine and judges: a path that means nothing is
// api's to refuse, with the nearest one.
package podenv

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"podvirt.dev/api"
)

// ErrNoPodVolume says that container vm has no downward API volume (spec vm.md 2.4).
var ErrNoPodVolume = errors.New("no downward API volume at /vm/pod")

// Env is the Pod as its container sees it.
type Env struct {
	// Pod is what api.Resolve reads. Requests, GracePeriod, Terminal, Seccomp and extended resources are not visible.
	Pod api.Pod
	// EphemeralStorage is limits.ephemeral-storage in bytes; 0: not projected.
	EphemeralStorage int64
}

// maxPodFile bounds a file of the downward API, in bytes. The API server keeps all annotations together below 256 KiB,
// which the escaping may make four times as long.
const maxPodFile = 2 << 20

// Read looks at the container whose root directory is fsys. A missing volume is [ErrNoPodVolume]; files that are
// missing in it or cannot be read come all at once, as [api.Errors] whose lines say what to add to the Pod.
func Read(fsys fs.FS) (Env, error) {
	pod := rel(api.PathPod)
	if entries, err := fs.ReadDir(fsys, pod); err != nil || len(entries) == 0 {
		return Env{}, ErrNoPodVolume
	}
	r := reader{fsys: fsys}
	env := Env{Pod: api.Pod{
		Name:        r.text(api.PodFileName, "metadata.name"),
		Namespace:   r.text(api.PodFileNamespace, "metadata.namespace"),
		UID:         r.text(api.PodFileUID, "metadata.uid"),
		Labels:      r.pairs(api.PodFileLabels, "metadata.labels"),
		Annotations: r.pairs(api.PodFileAnnotations, "metadata.annotations"),
		NodeArch:    runtime.GOARCH,
	}}
	if own, err := fs.ReadFile(fsys, "etc/hostname"); err == nil { // the kubelet's
		env.Pod.Hostname = strings.TrimSpace(string(own))
	}
	env.EphemeralStorage = r.amount(api.PodFileLimitsEphemeral)
	env.Pod.Limits = api.Resources{
		CPU:       wantedCPU(fsys, r.amount(api.PodFileLimitsCPU)),
		Memory:    wantedMemory(fsys, r.amount(api.PodFileLimitsMemory)),
		Hugepages: r.hugepages(),
	}
	paths, err := volumePaths(fsys)
	if err != nil {
		return Env{}, err
	}
	env.Pod.Paths = paths
	return env, r.errs.Join(nil).Err()
}

// rel turns an absolute path into one of package io/fs.
func rel(path string) string { return strings.TrimPrefix(path, "/") }

// reader reads files of the downward API volume and collects what is wrong with them.
type reader struct {
	fsys fs.FS
	errs api.Errors
}

func (r *reader) fail(file, format string, args ...any) {
	key := path.Join(api.PathPod, file)
	r.errs = append(r.errs, api.Error{Key: key, Text: key + ": " + fmt.Sprintf(format, args...)})
}

// content returns a file of the volume; false when it is not there.
func (r *reader) content(file string) (string, bool) {
	f, err := r.fsys.Open(rel(path.Join(api.PathPod, file)))
	if errors.Is(err, fs.ErrNotExist) {
		return "", false
	}
	if err != nil {
		r.fail(file, "%v", err)
		return "", true
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxPodFile+1))
	switch {
	case err != nil:
		r.fail(file, "%v", err)
	case len(data) > maxPodFile:
		r.fail(file, "more than %d bytes", maxPodFile)
	}
	return string(data), true
}

// text returns a file that must be there and not be empty.
func (r *reader) text(file, field string) string {
	text, found := r.content(file)
	if text = strings.TrimSpace(text); !found || text == "" {
		r.missing(file, field)
	}
	return text
}

func (r *reader) missing(file, field string) {
	r.fail(file, "no such file; add {path: %s, fieldRef: {fieldPath: %s}} to the volume's items", file, field)
}

// pairs returns a file of lines key="value" as the kubelet writes labels and annotations: one line per key, the value
// quoted as a Go string (k8s.io/kubernetes/pkg/fieldpath.FormatMap). An empty file is an empty map.
func (r *reader) pairs(file, field string) map[string]string {
	text, found := r.content(file)
	if !found {
		r.missing(file, field)
		return nil
	}
	pairs, err := ParsePairs(text)
	if err != nil {
		r.fail(file, "%v", err)
	}
	return pairs
}

// ParsePairs reads lines key="value" as the kubelet writes labels and annotations into a downward API volume.
func ParsePairs(text string) (map[string]string, error) {
	pairs := make(map[string]string)
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			continue
		}
		key, quoted, found := strings.Cut(line, "=")
		value, err := strconv.Unquote(quoted)
		if !found || err != nil || key == "" {
			return nil, fmt.Errorf("line %q is not of the form key=\"value\"", abbreviate(line))
		}
		pairs[key] = value
	}
	return pairs, nil
}

func abbreviate(line string) string {
	const most = 80
	if len(line) > most {
		return line[:most] + "…"
	}
	return line
}

// amount returns a file that holds a whole number and may be missing (0).
func (r *reader) amount(file string) int64 {
	text, found := r.content(file)
	if !found {
		return 0
	}
	n, err := strconv.ParseInt(strings.TrimSpace(text), 10, 64)
	if err != nil || n < 0 {
		r.fail(file, "%q is not a whole number", abbreviate(strings.TrimSpace(text)))
		return 0
	}
	return n
}

// hugepages returns the files limits.hugepages-SIZE; sizes that are 0 are left out.
func (r *reader) hugepages() map[string]int64 {
	entries, err := fs.ReadDir(r.fsys, rel(api.PathPod))
	if err != nil {
		r.fail("", "%v", err)
		return nil
	}
	limits := make(map[string]int64)
	for _, entry := range entries {
		size, ok := strings.CutPrefix(entry.Name(), api.PodFileHugepagesPrefix)
		if !ok {
			continue
		}
		if n := r.amount(entry.Name()); n > 0 {
			limits[size] = n
		}
	}
	return limits
}

// Get returns what is at a mount point or device path, and whether it is there.
func (e Env) Get(path string) (api.Path, bool) {
	i := slices.IndexFunc(e.Pod.Paths, func(p api.Path) bool { return p.Path == path })
	if i < 0 {
		return api.Path{}, false
	}
	return e.Pod.Paths[i], true
}
