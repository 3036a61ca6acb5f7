// Package sysfs reads what the kernel says about the machine in /sys and /proc. The file system is a value, so every
// reader is tested on a tree of files; paths are relative to the root directory of the host, as in package io/fs.
package sysfs

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strconv"
	"strings"
)

// FS is a root directory with sys and proc below it. os.DirFS and fstest.MapFS are such file systems.
type FS interface {
	fs.ReadLinkFS
	fs.ReadDirFS
}

// ErrFormat is wrapped by errors about files whose content is not what the kernel documents.
var ErrFormat = errors.New("unexpected content")

// maxFile bounds what is read of one file, in bytes; /proc/cpuinfo of a machine of 4096 CPUs has 8 MiB.
const maxFile = 16 << 20

// Host returns the file system below root ("/" for this machine).
func Host(root string) (FS, error) {
	host, ok := os.DirFS(root).(FS)
	if !ok {
		return nil, fmt.Errorf("directory %s: file system without links", root)
	}
	return host, nil
}

// Text returns a file's content without blanks around it.
func Text(fsys fs.FS, path string) (string, error) {
	text, err := textUpTo(fsys, path, maxFile)
	return strings.TrimSpace(text), err
}

// textUpTo returns the first bytes of a file.
func textUpTo(fsys fs.FS, path string, limit int64) (string, error) {
	file, err := fsys.Open(path)
	if err != nil {
		return "", err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, limit))
	if err != nil {
		return "", fmt.Errorf("%s: %w", path, err)
	}
	return string(content), nil
}

// Int returns a file that holds one decimal number.
func Int(fsys fs.FS, path string) (int64, error) {
	text, err := Text(fsys, path)
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s: %w: %q is no number", path, ErrFormat, text)
	}
	return n, nil
}

// maxListed bounds the numbers of one list: a hostile "0-999999999" must not fill memory.
const maxListed = 1 << 16

// ParseList reads the kernel's list format: "0-3,8" (Documentation/admin-guide/cputopology.rst). The result is sorted
// and holds no number twice; the empty text is the empty list.
func ParseList(text string) ([]int, error) {
	text = strings.TrimSpace(text)
	if text == "" {
		return nil, nil
	}
	var list []int
	for item := range strings.SplitSeq(text, ",") {
		first, last, isRange := strings.Cut(item, "-")
		if !isRange {
			last = first
		}
		from, err1 := strconv.Atoi(first)
		to, err2 := strconv.Atoi(last)
		if err1 != nil || err2 != nil || from < 0 || to < from || to-from >= maxListed || len(list) > maxListed {
			return nil, fmt.Errorf("list %q: %w: %q", text, ErrFormat, item)
		}
		for n := from; n <= to; n++ {
			list = append(list, n)
		}
	}
	slices.Sort(list)
	return slices.Compact(list), nil
}

// FormatList writes numbers in the kernel's list format; the list need not be sorted.
func FormatList(list []int) string {
	sorted := slices.Compact(slices.Sorted(slices.Values(list)))
	var b strings.Builder
	for i := 0; i < len(sorted); {
		j := i
		for j+1 < len(sorted) && sorted[j+1] == sorted[j]+1 {
			j++
		}
		if b.Len() > 0 {
			b.WriteByte(',')
		}
		b.WriteString(strconv.Itoa(sorted[i]))
		if j > i {
			b.WriteString("-" + strconv.Itoa(sorted[j]))
		}
		i = j + 1
	}
	return b.String()
}

// list reads a file in the kernel's list format.
func list(fsys fs.FS, path string) ([]int, error) {
	text, err := Text(fsys, path)
	if err != nil {
		return nil, err
	}
	numbers, err := ParseList(text)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return numbers, nil
}
