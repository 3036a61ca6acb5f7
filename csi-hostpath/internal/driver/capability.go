package driver

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"golang.org/x/sys/unix"

	"podvirt.dev/csi-hostpath/internal/volume"
)

// checkCapability returns the volume mode that a capability asks for.
func checkCapability(c *csi.VolumeCapability) (volume.Mode, error) {
	mode := c.GetAccessMode().GetMode()
	if _, known := csi.VolumeCapability_AccessMode_Mode_name[int32(mode)]; !known || mode == csi.VolumeCapability_AccessMode_UNKNOWN {
		return "", fmt.Errorf("%w: access mode %v", errInvalid, mode)
	}
	switch {
	case c.GetBlock() != nil:
		return volume.ModeBlock, nil
	case c.GetMount() != nil:
		_, err := mountFlags(c.GetMount().GetMountFlags())
		return volume.ModeFilesystem, err
	}
	return "", fmt.Errorf("%w: a volume capability needs an access type, block or mount", errInvalid)
}

// readerOnly reports whether nobody may write through the capability.
func readerOnly(c *csi.VolumeCapability) bool {
	switch c.GetAccessMode().GetMode() {
	case csi.VolumeCapability_AccessMode_SINGLE_NODE_READER_ONLY, csi.VolumeCapability_AccessMode_MULTI_NODE_READER_ONLY:
		return true
	}
	return false
}

// manyWriters reports whether the claim says that several may write.
func manyWriters(c *csi.VolumeCapability) bool {
	return c.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_MULTI_NODE_MULTI_WRITER
}

// oneWriter reports whether the claim is ReadWriteOncePod.
func oneWriter(c *csi.VolumeCapability) bool {
	return c.GetAccessMode().GetMode() == csi.VolumeCapability_AccessMode_SINGLE_NODE_SINGLE_WRITER
}

// flags are mount options of a StorageClass in the two forms mount(2) wants.
type flags struct {
	bits uintptr
	data string
}

// mountFlags reads the options that are honoured (ST-020).
func mountFlags(options []string) (flags, error) {
	bits := map[string]uintptr{
		"noatime": unix.MS_NOATIME, "nodiratime": unix.MS_NODIRATIME, "noexec": unix.MS_NOEXEC, "nosuid": unix.MS_NOSUID,
		"relatime": unix.MS_RELATIME, "ro": unix.MS_RDONLY, "rw": 0,
	}
	var found flags
	var data []string
	for _, option := range options {
		bit, known := bits[option]
		switch {
		case known:
			found.bits |= bit
		case option == "discard", option == "nodiscard":
			data = append(data, option)
		default:
			allowed := append(slices.Sorted(maps.Keys(bits)), "discard", "nodiscard")
			return flags{}, invalid(notOneOf("mount option", option, allowed))
		}
	}
	found.data = strings.Join(data, ",")
	return found, nil
}
