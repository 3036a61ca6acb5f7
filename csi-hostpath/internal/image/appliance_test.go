package image

import (
	"archive/tar"
	"bytes"
	"os"
	"path/filepath"
	"testing"
)

// appliance is a tar file; a name that ends with / is a directory, one with -> a link.
func appliance(t *testing.T, files ...any) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(files); i += 2 {
		name, _ := files[i].(string)
		header := &tar.Header{Name: name, Mode: 0o644, Typeflag: tar.TypeReg}
		data, _ := files[i+1].([]byte)
		if target, isLink := files[i+1].(string); isLink {
			header.Typeflag, header.Linkname = tar.TypeSymlink, target
		}
		header.Size = int64(len(data))
		if err := w.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := w.Write(data); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestAppliance: one disk of an ova is taken, whatever its format; links are not followed.
func TestAppliance(t *testing.T) {
	needs(t, "qemu-img")
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "raw"), content(), 0o600); err != nil {
		t.Fatal(err)
	}
	runIn(t, dir, "qemu-img", "convert", "-O", "vdi", "raw", "vdi")
	ovf, disk1, disk2 := []byte("<Envelope/>"), streamed(content()), readFile(t, filepath.Join(dir, "vdi"))
	one := appliance(t, "vm.ovf", ovf, "vm.mf", []byte("SHA256"), "vm-disk1.vmdk", disk1)
	two := appliance(t, "./vm.ovf", ovf, "./a.vdi", disk2, "./b.vmdk.gz", packed(disk1))
	linked := appliance(t, "vm.ovf", ovf, "a.vmdk", "/etc/passwd")
	for name, row := range map[string]struct {
		source []byte
		member string
		text   string
	}{
		"the only disk":         {one, "", ""},
		"by name":               {two, "a.vdi", ""},
		"the second, packed":    {two, "b.vmdk.gz", ""},
		"packed itself":         {packed(one), "vm-disk1.vmdk", ""},
		"two":                   {two, "", "podvirt.dev/import-member is needed; the source holds: a.vdi, b.vmdk.gz"},
		"another name":          {two, "c.vmdk", `"c.vmdk" not found; the source holds: a.vdi, b.vmdk.gz`},
		"none":                  {appliance(t, "vm.ovf", ovf), "", "the archive holds no disk"},
		"a link":                {linked, "", "the archive holds no disk"},
		"half":                  {one[:len(one)/2], "", "damaged archive: unexpected EOF"},
		"half, before the disk": {one[:600], "", "the archive holds no disk"},
		"no archive":            {content(), "", "damaged archive"},
		"not a disk":            {appliance(t, "a.vmdk", patched(disk1, 4, 9)), "", "version 9"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for _, random := range []bool{false, true} {
				to := &disk{data: make([]byte, diskSize)}
				o := Options{Size: diskSize, Format: Auto, Compression: Auto, Length: int64(len(row.source)), To: to}
				if random {
					o.At = bytes.NewReader(row.source)
				}
				err := CopyMember(bytes.NewReader(row.source), o, row.member)
				refusedWith(t, err, row.text)
				if err == nil && !bytes.Equal(to.data[:diskSize/2], content()) {
					t.Error("the disk differs from the image")
				}
			}
		})
	}
}
