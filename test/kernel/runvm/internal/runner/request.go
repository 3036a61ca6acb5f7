package runner

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// request is what a package asks of the runner besides the machine:
//
//	module=NAME       a kernel module that few tests need
//	program=FOLDER    a static program of this repository, in /bin
//	launcher=FOLDER   one that opens libvirt and so needs the C library of its image
//	tool=NAME         a pinned program of test/programs, which make programs has built
//	share=NAME        a directory of the image cache as 9p file system NAME, where it is there
//	qemu=launcher     the machine runs by the QEMU of the launcher's image, which has more devices than an older Debian's
type request struct {
	modules, programs, dynamic, tools, shares []string
	qemu                                      string
}

// parseRequest takes the runner's own words out of those of a machine.
func parseRequest(words []string) (request, []string) {
	var r request
	var rest []string
	for _, word := range words {
		key, value, _ := strings.Cut(word, "=")
		switch key {
		case "module":
			r.modules = append(r.modules, value)
		case "program":
			r.programs = append(r.programs, value)
		case "launcher":
			r.dynamic = append(r.dynamic, value)
		case "tool":
			r.tools = append(r.tools, value)
		case "share":
			r.shares = append(r.shares, value)
		case "qemu":
			r.qemu = value
		default:
			rest = append(rest, word)
		}
	}
	return r, rest
}

// tool returns the newest build of a pinned program.
func (r *runner) tool(name string) (string, error) {
	builds, err := filepath.Glob(filepath.Join(r.cache, "bin", name+"-v*"))
	if err != nil {
		return "", err
	}
	var newest string
	var when time.Time
	for _, build := range builds {
		info, err := os.Stat(build)
		if err != nil {
			return "", err
		}
		if newest == "" || info.ModTime().After(when) {
			newest, when = build, info.ModTime()
		}
	}
	if newest == "" {
		return "", fmt.Errorf("%s is not built: run make programs", name)
	}
	return newest, nil
}

// foreignQEMU runs QEMU of another root file system on this one: with its own loader and libraries, and with its modules
// and firmware in the places that are compiled in, which is why it gets a mount namespace.
const foreignQEMU = `#!/bin/sh
exec unshare --mount --propagation private sh -ec '
root=$1; shift
for dir in /usr/lib/x86_64-linux-gnu/qemu /usr/share/qemu /usr/share/seabios; do mount --bind "$root$dir" "$dir"; done
lib=/usr/lib/x86_64-linux-gnu
exec "$root/lib64/ld-linux-x86-64.so.2" --library-path "$root$lib" "$root/usr/bin/qemu-system-x86_64" "$@"' sh '%s' "$@"
`

// qemu returns the program that runs the machine; "" is the one of the search path.
func (r *runner) qemu(asked request, parts string) (string, error) {
	switch {
	case os.Getenv("PODVIRT_QEMU") != "" || asked.qemu == "":
		return os.Getenv("PODVIRT_QEMU"), nil
	case asked.qemu != "launcher":
		return "", fmt.Errorf("machine option %q: want launcher", "qemu="+asked.qemu)
	}
	file := filepath.Join(r.work, "qemu")
	script := fmt.Sprintf(foreignQEMU, filepath.Join(parts, "launcher-rootfs"))
	return file, os.WriteFile(file, []byte(script), 0o755)
}
