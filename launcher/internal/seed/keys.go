package seed

import (
	"bytes"
	"errors"
	"io/fs"
	"path"
	"regexp"
	"slices"
	"strings"

	"golang.org/x/crypto/ssh"

	"podvirt.dev/api"
)

// userKeys are the SSH keys of one user of the guest.
type userKeys struct {
	user string
	keys []string // lines of an authorized_keys file
}

// maxKeyFile bounds one file of /vm/ssh-keys, in bytes.
const maxKeyFile = 64 << 10

// readKeys reads the directories of the users. What is no key is reported by the name of its file and left out.
func (b *builder) readKeys(fsys fs.FS, users []string) []userKeys {
	validUser := regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_.-]{0,31}$`)
	var all []userKeys
	for _, user := range users {
		if !validUser.MatchString(user) {
			b.warn(api.PathSSHKeys+user, "no name of a user; ignored")
			continue
		}
		keys := b.readUser(fsys, user)
		if len(keys) > 0 {
			all = append(all, userKeys{user: user, keys: keys})
		}
	}
	return all
}

func (b *builder) readUser(fsys fs.FS, user string) []string {
	dir := path.Join(strings.TrimPrefix(api.PathSSHKeys, "/"), user)
	entries, err := fs.ReadDir(fsys, dir)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) {
			b.warn("/"+dir, "%v", err)
		}
		return nil
	}
	var keys []string
	for _, entry := range entries {
		if strings.HasPrefix(entry.Name(), "..") {
			continue
		}
		name := path.Join(dir, entry.Name())
		content, err := readBounded(fsys, name, maxKeyFile)
		if err != nil {
			b.warn("/"+name, "no public key file; ignored")
			continue
		}
		for line := range bytes.Lines(content) {
			line = bytes.TrimSpace(line)
			if len(line) == 0 || line[0] == '#' {
				continue
			}
			if _, _, _, _, err := ssh.ParseAuthorizedKey(line); err != nil {
				b.warn("/"+name, "holds a line that is no public key; ignored")
				continue
			}
			if key := string(line); !slices.Contains(keys, key) {
				keys = append(keys, key)
			}
		}
	}
	return keys
}

// allKeys are the keys of all users, for the image's default user.
func allKeys(users []userKeys) []string {
	var all []string
	for _, u := range users {
		for _, key := range u.keys {
			if !slices.Contains(all, key) {
				all = append(all, key)
			}
		}
	}
	return all
}
