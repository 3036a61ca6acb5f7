// Package seed makes the NoCloud seed of a guest: a CD image labelled cidata from which cloud-init configures it at its
// first boot (spec vm.md VM-150, VM-155). What the user wrote in /vm/cloud-init goes in as it is; what is missing and
// podvirt knows is added: instance-id, host name, SSH keys, static addresses.
package seed

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"
	"time"

	"podvirt.dev/api"
	"podvirt.dev/internal/atomicfile"
	"podvirt.dev/launcher/internal/iso9660"
)

// The files of a NoCloud seed, by the names cloud-init looks for.
const (
	UserData      = "user-data"
	MetaData      = "meta-data"
	NetworkConfig = "network-config"
	VendorData    = "vendor-data"
)

// Label is the volume label by which cloud-init finds the seed.
const Label = "cidata"

// MaxSize bounds what the user may put into /vm/cloud-init, in bytes.
const MaxSize = 2 << 20

// ErrTooLarge is wrapped where /vm/cloud-init holds more than [MaxSize].
var ErrTooLarge = errors.New("at most 2Mi")

// Input is what a seed is made from.
type Input struct {
	InstanceID string // namespace/name, or what the user chose
	Hostname   string
	SSHUsers   []string // directories below /vm/ssh-keys whose keys go into the seed; empty: none
	NICs       []NIC    // of the guest
}

// Seed is a seed that was not written yet.
type Seed struct {
	Files    []iso9660.File
	Warnings []string // what the user should know, one line each; never a value of a Secret
}

// Build reads /vm/cloud-init and /vm/ssh-keys of the container whose root directory is fsys.
func Build(fsys fs.FS, input Input) (Seed, error) {
	b := builder{files: make(map[string][]byte)}
	if err := b.readFiles(fsys); err != nil {
		return Seed{}, err
	}
	keys := b.readKeys(fsys, input.SSHUsers)
	b.metaData(input, keys)
	b.userData(keys)
	b.networkConfig(input.NICs)
	return b.seed(), nil
}

// Write writes the image to a file that only its owner can read. A guest that has the former image open keeps it.
func (s Seed) Write(file string, modified time.Time) error {
	var image bytes.Buffer
	if err := iso9660.Write(&image, Label, modified, s.Files); err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	if err := atomicfile.Write(file, image.Bytes(), 0o600); err != nil {
		return fmt.Errorf("seed: %w", err)
	}
	return nil
}

// builder collects the files of a seed.
type builder struct {
	files    map[string][]byte
	warnings []string
}

func (b *builder) warn(file, format string, args ...any) {
	b.warnings = append(b.warnings, file+": "+fmt.Sprintf(format, args...))
}

// seed returns the files in a fixed order. user-data and meta-data must be there for cloud-init to take the seed.
func (b *builder) seed() Seed {
	if _, found := b.files[UserData]; !found {
		b.files[UserData] = nil
	}
	s := Seed{Warnings: b.warnings}
	for _, name := range []string{MetaData, NetworkConfig, UserData, VendorData} {
		if content, found := b.files[name]; found {
			s.Files = append(s.Files, iso9660.File{Name: name, Content: content})
		}
	}
	return s
}

// readFiles reads /vm/cloud-init; a directory that is not there is empty. Names that cloud-init does not know are
// reported: a Secret with a key userdata would otherwise be ignored without a word.
func (b *builder) readFiles(fsys fs.FS) error {
	dir := strings.TrimPrefix(api.PathCloudInit, "/")
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%s: %w", api.PathCloudInit, err)
	}
	total := 0
	for _, entry := range entries {
		name := entry.Name()
		if strings.HasPrefix(name, "..") { // of the kubelet's atomic writer
			continue
		}
		if !slices.Contains([]string{UserData, MetaData, NetworkConfig, VendorData}, name) {
			b.warn(api.PathCloudInit+"/"+name, "not one of user-data, meta-data, network-config, vendor-data; ignored")
			continue
		}
		content, err := readBounded(fsys, path.Join(dir, name), MaxSize-total)
		if err != nil {
			return fmt.Errorf("%s: %w", api.PathCloudInit, err)
		}
		total += len(content)
		b.files[name] = content
	}
	return nil
}

func readBounded(fsys fs.FS, name string, most int) ([]byte, error) {
	file, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, int64(most)+1))
	if err != nil {
		return nil, err
	}
	if len(content) > most {
		return nil, ErrTooLarge
	}
	return content, nil
}
