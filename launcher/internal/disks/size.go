package disks

import (
	"io"
	"os"

	"golang.org/x/sys/unix"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/domain"
)

// CanGrow says whether the volume behind a disk may become larger while the VM runs: that of a claim, also under an
// overlay. Images do not grow, and drives are as large as their medium.
func CanGrow(d domain.Disk) bool {
	return d.Source != "" && d.Options.Path != "" && !fromImage(volumeOf(d)) && volumeOf(d).Format == "raw" && d.Options.Type != api.DiskTypeCDROM
}

// Size returns how many bytes the volume behind a disk has now.
func Size(d domain.Disk) (int64, error) {
	f, err := os.OpenFile(volumeOf(d).Source, os.O_RDONLY|unix.O_NONBLOCK, 0)
	if err != nil {
		return 0, err
	}
	size, err := f.Seek(0, io.SeekEnd) // of a device, too
	if closeErr := f.Close(); err == nil {
		err = closeErr
	}
	return size, err
}

// volumeOf is the disk without its overlay.
func volumeOf(d domain.Disk) domain.Disk {
	if d.Backing != nil {
		d.Source, d.Block, d.Format = d.Backing.Source, d.Backing.Block, d.Backing.Format
	}
	return d
}
