package podenv

import (
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strconv"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/internal/sysfs"
)

// mount is one line of /proc/self/mountinfo (proc_pid_mountinfo(5)).
type mount struct {
	root     string // directory of the mounted file system that is seen at point
	point    string
	readOnly bool
	fsType   string
}

// volumePaths lists every mount point below /vm, /run/podvirt, and every block device below /vm/disks and /vm/cdroms,
// sorted by path.
func volumePaths(fsys fs.FS) ([]api.Path, error) {
	text, err := sysfs.Text(fsys, "proc/self/mountinfo")
	if err != nil {
		return nil, fmt.Errorf("mounts of the container: %w", err)
	}
	found := make(map[string]api.Path)
	for line := range strings.Lines(text) {
		m, ok := parseMount(line)
		if !ok || !ours(m.point) {
			continue
		}
		if disk, inside := diskOf(m.point); inside {
			// csi-hostpath shows disk.img alone, mounted into a read-only directory of its own (storage.md ST-016).
			found[disk] = api.Path{Path: disk, Source: api.SourceFilesystem, ReadOnly: m.readOnly}
			continue
		}
		found[m.point] = api.Path{Path: m.point, Source: m.source(fsys), ReadOnly: m.readOnly} // the last one covers the others
	}
	for _, parent := range []string{api.PathDisks, api.PathCDROMs} {
		entries, err := fs.ReadDir(fsys, path.Clean(rel(parent)))
		if err != nil {
			continue // no such directory: no devices there
		}
		for _, entry := range entries {
			if isBlock(entry.Type()) {
				found[parent+entry.Name()] = api.Path{Path: parent + entry.Name(), Source: api.SourceBlock}
			}
		}
	}
	paths := make([]api.Path, 0, len(found))
	for _, p := range found {
		paths = append(paths, p)
	}
	slices.SortFunc(paths, func(a, b api.Path) int { return strings.Compare(a.Path, b.Path) })
	return paths, nil
}

// diskOf returns the disk or CD-ROM in whose volume a file is mounted.
func diskOf(point string) (disk string, inside bool) {
	for _, parent := range []string{api.PathDisks, api.PathCDROMs} {
		rest, below := strings.CutPrefix(point, parent)
		name, file, nested := strings.Cut(rest, "/")
		if below && nested && file != "" {
			return parent + name, true
		}
	}
	return "", false
}

func isBlock(mode fs.FileMode) bool { return mode&fs.ModeDevice != 0 && mode&fs.ModeCharDevice == 0 }

// ours reports whether a mount point is one that podvirt reads.
func ours(point string) bool {
	return point == api.PathRun || strings.HasPrefix(point, api.PathRoot+"/")
}

// parseMount reads one line; the optional fields before the hyphen are of no interest.
func parseMount(line string) (mount, bool) {
	before, after, found := strings.Cut(line, " - ")
	fields := strings.Fields(before)
	types := strings.Fields(after)
	if !found || len(fields) < 6 || len(types) == 0 {
		return mount{}, false
	}
	return mount{
		root:     unescape(fields[3]),
		point:    unescape(fields[4]),
		readOnly: slices.Contains(strings.Split(fields[5], ","), "ro"),
		fsType:   types[0],
	}, true
}

// unescape replaces the octal escapes that the kernel writes for blanks and backslashes.
func unescape(text string) string {
	var b strings.Builder
	for i := 0; i < len(text); i++ {
		if text[i] == '\\' && i+4 <= len(text) {
			if n, err := strconv.ParseUint(text[i+1:i+4], 8, 8); err == nil {
				b.WriteByte(byte(n))
				i += 3
				continue
			}
		}
		b.WriteByte(text[i])
	}
	return b.String()
}

// source says which kind of volume a mount is. The kubelet bind-mounts a directory whose path names the volume plugin;
// Secrets and projected volumes are file systems of their own, known by the link ..data that the kubelet writes
// (k8s.io/kubernetes/pkg/volume/util.AtomicWriter).
func (m mount) source(fsys fs.FS) api.SourceKind {
	if _, err := fs.Stat(fsys, path.Join(rel(m.point), "..data")); err == nil {
		return api.SourceFiles
	}
	_, plugin, _ := strings.Cut(m.root, "/volumes/")
	plugin, _, _ = strings.Cut(plugin, "/")
	switch plugin {
	case "kubernetes.io~empty-dir":
		return api.SourceEmptyDir
	case "kubernetes.io~configmap", "kubernetes.io~secret", "kubernetes.io~projected", "kubernetes.io~downward-api":
		return api.SourceFiles
	}
	switch m.fsType {
	case "overlay":
		return api.SourceImage
	case "tmpfs":
		return api.SourceEmptyDir
	}
	return api.SourceFilesystem
}
