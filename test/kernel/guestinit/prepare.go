package main

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"podvirt.dev/test/kernel/internal/job"
)

// prepare makes of the unpacked archive a system in which programs find what they expect.
func prepare() error {
	mounts := []struct {
		source, target, kind, data string
		needed                     bool
	}{
		{"proc", "/proc", "proc", "", true},
		{"sysfs", "/sys", "sysfs", "", true},
		{"devtmpfs", "/dev", "devtmpfs", "", true},
		{"devpts", "/dev/pts", "devpts", "", true},
		{"tmpfs", "/dev/shm", "tmpfs", "", true},
		{"tmpfs", "/tmp", "tmpfs", "mode=1777", true},
		{"tmpfs", "/run", "tmpfs", "mode=755", true},
		{"cgroup2", "/sys/fs/cgroup", "cgroup2", "", true},
		{"hugetlbfs", "/dev/hugepages", "hugetlbfs", "", false},
		{"bpffs", "/sys/fs/bpf", "bpf", "", false},
	}
	for _, m := range mounts {
		if err := os.MkdirAll(m.target, 0o755); err != nil && m.needed {
			return err
		}
		if err := unix.Mount(m.source, m.target, m.kind, 0, m.data); err != nil && m.needed {
			return fmt.Errorf("mounting %s: %w", m.target, err)
		}
	}
	if err := os.Symlink("/proc/self/fd", "/dev/fd"); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.WriteFile("/proc/sys/kernel/modprobe", []byte("/"+job.Modprobe), 0o644); err != nil {
		return err
	}
	if err := os.MkdirAll("/run/netns", 0o755); err != nil {
		return err
	}
	return errors.Join(unix.Sethostname([]byte("podvirt-kernel-test")), loopback(), coldplug())
}

// loopback sets the loopback interface up: many a test listens there.
func loopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(fd) }()
	request, err := unix.NewIfreq("lo")
	if err != nil {
		return err
	}
	if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, request); err != nil {
		return err
	}
	request.SetUint16(request.Uint16() | unix.IFF_UP)
	return unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, request)
}

// coldplug loads the drivers of the devices that were there before this process was.
func coldplug() error {
	found, err := filepath.Glob("/sys/bus/*/devices/*/modalias")
	if err != nil {
		return err
	}
	var aliases []string
	for _, file := range found {
		alias, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		aliases = append(aliases, strings.TrimSpace(string(alias)))
	}
	index, err := readIndex()
	if err != nil {
		return err
	}
	if err := index.staticNodes(); err != nil {
		return err
	}
	for _, alias := range aliases {
		if err := index.load(alias); err != nil && !errors.Is(err, errNoModule) {
			return err
		}
	}
	return nil
}
