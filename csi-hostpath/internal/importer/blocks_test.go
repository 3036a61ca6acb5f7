package importer

import (
	"bytes"
	"errors"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"podvirt.dev/internal/require"
)

// outOfOrder is a qcow2 whose table lies behind its data, and the disk in it.
func outOfOrder(t *testing.T) (packed, disk []byte) {
	t.Helper()
	for _, program := range []string{"qemu-img", "qemu-io"} {
		_, err := exec.LookPath(program)
		require.Feature(t, err == nil, program)
	}
	dir := t.TempDir()
	cmd := exec.CommandContext(t.Context(), "sh", "-e", "-c", "qemu-img create -q -f qcow2 mixed 8M; qemu-io -c 'write -P 7 0 1M' mixed\n"+
		"qemu-img snapshot -c old mixed; qemu-io -c 'write -P 9 4M 64k' mixed; qemu-img convert -O raw mixed raw")
	cmd.Dir = dir
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	var err error
	if packed, err = os.ReadFile(filepath.Join(dir, "mixed")); err != nil {
		t.Fatal(err)
	}
	if disk, err = os.ReadFile(filepath.Join(dir, "raw")); err != nil {
		t.Fatal(err)
	}
	return packed, disk
}

// TestSameBytesAgain: a server that answers with other bytes when a piece is asked for again is found out, although the
// stream has the right checksum (ST-047).
func TestSameBytesAgain(t *testing.T) {
	packed, disk := outOfOrder(t)
	for name, lies := range map[string]bool{"honest": false, "lies": true} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			right, wrong := &site{files: map[string][]byte{"mixed": packed}}, bytes.Clone(packed)
			for i := len(wrong) / 8; i < len(wrong); i++ {
				if wrong[i] == 7 {
					wrong[i] = 8
				}
			}
			other := &site{files: map[string][]byte{"mixed": wrong}}
			url := listen(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if lies && r.Header.Get("Range") != "" {
					r.Header.Del("If-Range") // another version under the same name
					other.ServeHTTP(&renamed{ResponseWriter: w, etag: etagOf(packed)}, r)
					return
				}
				right.ServeHTTP(w, r)
			}))
			a := &attempt{url: url + "/mixed", options: map[string]string{"checksum": digestOf(packed)}}
			_, err := a.run(t)
			if lies {
				var refused Refused
				if !errors.As(err, &refused) || !strings.Contains(err.Error(), "two versions of the bytes from offset") {
					t.Errorf("error = %v; want a refusal", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if got, err := os.ReadFile(a.disk.Name()); err != nil || !bytes.Equal(got, disk) {
				t.Errorf("the disk differs from what QEMU reads: %v", err)
			}
			if a.last.Transferred <= int64(len(packed)) {
				t.Error("nothing was asked for again")
			}
		})
	}
}

func etagOf(data []byte) string {
	return `"` + strings.TrimPrefix(digestOf(data), "sha256:")[:16] + `"`
}

// renamed answers under another version.
type renamed struct {
	http.ResponseWriter
	etag string
}

func (r *renamed) WriteHeader(code int) {
	r.Header().Set("ETag", r.etag)
	r.ResponseWriter.WriteHeader(code)
}

// TestBlocks: blocks are compared before and after the stream has brought them.
func TestBlocks(t *testing.T) {
	data := bytes.Repeat([]byte("0123456789abcdef"), blockSize/16*2)
	data = append(data, "the end"...)
	other := bytes.Clone(data)
	other[blockSize+5]++
	for name, row := range map[string]struct {
		early, late []byte // of block 1 and 2, asked for before and after
		fails       bool
	}{
		"same":          {data, data, false},
		"other, early":  {other, nil, true},
		"other, late":   {nil, other, true},
		"two, early":    {data, nil, false},
		"never checked": {nil, nil, false},
	} {
		var b blocks
		errs := []error{b.write(data[:blockSize+10])}
		if row.early != nil {
			errs = append(errs, b.check(1, row.early[blockSize:2*blockSize]), b.check(2, row.early[2*blockSize:]))
		}
		errs = append(errs, b.write(data[blockSize+10:]), b.end())
		if row.late != nil {
			errs = append(errs, b.check(1, row.late[blockSize:2*blockSize]), b.check(2, row.late[2*blockSize:]))
		}
		if err := errors.Join(errs...); (err != nil) != row.fails {
			t.Errorf("%s: %v", name, err)
		}
	}
}
