package disks

import (
	"encoding/binary"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"

	"podvirt.dev/launcher/internal/domain"
)

// table is an ACPI table of that many bytes.
func table(signature string, size int) []byte {
	t := make([]byte, size)
	copy(t, signature)
	binary.LittleEndian.PutUint32(t[4:], uint32(size))
	var sum byte
	for _, b := range t {
		sum += b
	}
	t[9] = -sum
	return t
}

// TestACPI: tables of the machine's maker, and what is no table (VM-064).
func TestACPI(t *testing.T) {
	short, other, spoilt := table("SLIC", 374), table("MSDM", 374), table("SLIC", 374)
	spoilt[100]++
	for _, row := range []struct {
		name  string
		files map[string][]byte
		want  []string
		err   string
	}{
		{"both", map[string][]byte{"slic": table("SLIC", 374), "msdm": table("MSDM", 85)}, []string{"slic", "msdm"}, ""},
		{"one", map[string][]byte{"msdm": table("MSDM", 85)}, []string{"msdm"}, ""},
		{"none", map[string][]byte{"SLIC.bin": nil}, nil, ": neither slic nor msdm; found: SLIC.bin"},
		{"cut", map[string][]byte{"slic": short[:300]}, nil, "/slic: 300 bytes; its header says 374"},
		{"no header", map[string][]byte{"slic": []byte("SLIC")}, nil, "/slic: 4 bytes; an ACPI table has 36 and more"},
		{"another", map[string][]byte{"slic": other}, nil, `/slic: signature "MSDM"; want SLIC`},
		{"checksum", map[string][]byte{"slic": spoilt}, nil, "/slic: its checksum is wrong"},
		{"long", map[string][]byte{"slic": table("SLIC", 1<<16)}, nil, "/slic: longer than 64 KiB"},
	} {
		t.Run(row.name, func(t *testing.T) {
			dir := t.TempDir()
			for name, content := range row.files {
				if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
					t.Fatal(err)
				}
			}
			var want []domain.Table
			for _, kind := range row.want {
				want = append(want, domain.Table{Kind: kind, Path: filepath.Join(dir, kind)})
			}
			got, err := ACPI(dir)
			if diff := cmp.Diff(want, got); diff != "" {
				t.Errorf("(-want,+got):\n%s", diff)
			}
			if (err == nil) != (row.err == "") || err != nil && err.Error() != dir+row.err {
				t.Errorf("error %v; want %q", err, row.err)
			}
		})
	}
	if got, err := ACPI(filepath.Join(t.TempDir(), "nothing")); got != nil || err != nil {
		t.Errorf("no volume: %v, %v", got, err)
	}
}
