package api

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
)

func TestParseImport(t *testing.T) {
	const url = "https://images.example.org/a.qcow2.xz"
	for name, row := range map[string]struct {
		annotations map[string]string
		dataSource  bool
		want        *Import
		errs        []string
	}{
		"nothing is blank": {},
		"blank":            {annotations: map[string]string{KeyImportSource: "blank:"}},
		"blank with a checksum": {
			annotations: map[string]string{KeyImportSource: "blank:", KeyImportChecksum: "sha256:" + strings.Repeat("a", 64)},
			errs:        []string{"a blank volume has no source"},
		},
		"defaults": {
			annotations: map[string]string{KeyImportSource: url},
			want:        &Import{Source: url, Format: "auto", Compression: "auto", Deadline: 24 * time.Hour},
		},
		"everything": {
			annotations: map[string]string{
				KeyImportSource: url, KeyImportFormat: "qcow2", KeyImportCompression: "xz", KeyImportChecksum: "sha1:" + strings.Repeat("A", 40),
				KeyImportCA: "example-ca", KeyImportSecret: "login", KeyImportHeaders: "X-A: b\nX-C: d", KeyImportInsecure: "true",
				KeyImportDeadline: "0", KeyImportProgress: "1.0%", KeyImportPaused: "true", KeyImportHeadersSecret: "one, two",
			},
			want: &Import{
				Source: url, Format: "qcow2", Compression: "xz", Checksum: "sha1:" + strings.Repeat("a", 40), CA: "example-ca", Secret: "login",
				Headers: []string{"X-A: b", "X-C: d"}, Insecure: true, Paused: true, HeaderSecrets: []string{"one", "two"},
			},
		},
		"iso is raw": {
			annotations: map[string]string{KeyImportSource: url, KeyImportFormat: "iso"},
			want:        &Import{Source: url, Format: "raw", Compression: "auto", Deadline: 24 * time.Hour},
		},
		"all mistakes at once": {
			annotations: map[string]string{
				KeyImportSource: "htp://x/y", KeyImportFormat: "qcow", KeyImportCompression: "zip", KeyImportDeadline: "1 day",
				KeyImportChecksum: "sha256:" + strings.Repeat("a", 60), KeyImportHeaders: "X-A: b\nnonsense", Prefix + "import-cheksum": "x",
			},
			errs: []string{
				`podvirt.dev/import-checksum: "sha256:` + strings.Repeat("a", 60) + `": sha256 needs 64 hex digits, got 60`,
				`podvirt.dev/import-cheksum: "x": unknown key; nearest: podvirt.dev/import-checksum`,
				`podvirt.dev/import-compression: "zip": not one of auto, none, gz, xz, zst, bz2`,
				`podvirt.dev/import-deadline: "1 day": is not a duration such as 30m or 24h`,
				`podvirt.dev/import-format: "qcow": not one of auto, raw, iso, qcow2, vmdk, vdi, vhd, vhdx; nearest: qcow2`,
				`podvirt.dev/import-headers: "X-A: b\nnonsense": line 2 is not "Name: value"`,
				`scheme not one of http, https, s3, gs, docker, nbd, nbds, pvc, snapshot, boot, upload, blank; nearest: http`,
			},
		},
		"registry": {
			annotations: map[string]string{
				KeyImportSource: "docker://quay.io/containerdisks/fedora:44", KeyImportArch: "arm64", KeyImportMember: "disk/a.qcow2",
			},
			want: &Import{
				Source: "docker://quay.io/containerdisks/fedora:44", Format: "auto", Compression: "auto", Deadline: 24 * time.Hour,
				Arch: "arm64", Member: "disk/a.qcow2",
			},
		},
		"registry with a checksum": {
			annotations: map[string]string{KeyImportSource: "docker://r/x", KeyImportChecksum: "md5:" + strings.Repeat("0", 32), KeyImportMember: "../x"},
			errs:        []string{"a registry has digests of its own", `"../x": leaves the archive`},
		},
		"appliance": {
			annotations: map[string]string{KeyImportSource: "https://h/a.OVA?x=y", KeyImportMember: "a.vmdk", KeyImportFormat: "vmdk"},
			want: &Import{
				Source: "https://h/a.OVA?x=y", Format: "vmdk", Compression: "auto", Deadline: 24 * time.Hour, Archive: "ova", Member: "a.vmdk",
			},
		},
		"appliance by another name": {
			annotations: map[string]string{KeyImportSource: "https://h/a.tar", KeyImportArchive: "ova"},
			want:        &Import{Source: "https://h/a.tar", Format: "auto", Compression: "auto", Deadline: 24 * time.Hour, Archive: "ova"},
		},
		"no appliance": {
			annotations: map[string]string{KeyImportSource: "https://h/a.ova", KeyImportArchive: "none"},
			want:        &Import{Source: "https://h/a.ova", Format: "auto", Compression: "auto", Deadline: 24 * time.Hour},
		},
		"appliance of a registry": {
			annotations: map[string]string{KeyImportSource: "docker://r/x", KeyImportArchive: "ova"}, errs: []string{"not for docker:// sources"},
		},
		"member of nothing": {
			annotations: map[string]string{KeyImportSource: url, KeyImportMember: "x"}, errs: []string{"only for docker:// sources"},
		},
		"object": {
			annotations: map[string]string{KeyImportSource: "s3://b/a/k?endpoint=http://h:9000&region=eu&style=path&versionId=1"},
			want: &Import{
				Source: "s3://b/a/k?endpoint=http://h:9000&region=eu&style=path&versionId=1", Format: "auto", Compression: "auto", Deadline: 24 * time.Hour,
			},
		},
		"no object":       {annotations: map[string]string{KeyImportSource: "gs://b/"}, errs: []string{"no object in the URL: gs://BUCKET/OBJECT"}},
		"parameter":       {annotations: map[string]string{KeyImportSource: "s3://b/k?regoin=eu"}, errs: []string{`"regoin": unknown parameter; nearest: region`}},
		"parameter of gs": {annotations: map[string]string{KeyImportSource: "gs://b/k?region=eu"}, errs: []string{`"region": unknown parameter`}},
		"style":           {annotations: map[string]string{KeyImportSource: "s3://b/k?style=virtual"}, errs: []string{"style: not one of path, host"}},
		"endpoint":        {annotations: map[string]string{KeyImportSource: "s3://b/k?endpoint=h"}, errs: []string{"endpoint: not a URL such as"}},
		"sums file": {
			annotations: map[string]string{KeyImportSource: url, KeyImportChecksum: "https://h/SHA256SUMS"},
			want:        &Import{Source: url, Format: "auto", Compression: "auto", Deadline: 24 * time.Hour, Checksum: "https://h/SHA256SUMS"},
		},
		"sums file with a password": {
			annotations: map[string]string{KeyImportSource: url, KeyImportChecksum: "https://me:x@h/SHA256SUMS", KeyImportHeadersSecret: "a,B_"},
			errs:        []string{"a password in the URL", "not the name of an object"},
		},
		"password":  {annotations: map[string]string{KeyImportSource: "https://u:p@h/x"}, errs: []string{"a password in the URL; use podvirt.dev/import-secret"}},
		"no host":   {annotations: map[string]string{KeyImportSource: "https:///x"}, errs: []string{"no host in the URL"}},
		"not yet":   {annotations: map[string]string{KeyImportSource: "nbd://h/x"}, errs: []string{"nbd: not supported by this version"}},
		"tar":       {annotations: map[string]string{KeyImportSource: url, KeyImportArchive: "tar"}, errs: []string{"not supported by this version"}},
		"two kinds": {annotations: map[string]string{KeyImportSource: url}, dataSource: true, errs: []string{"cannot be combined with spec.dataSource"}},
	} {
		t.Run(name, func(t *testing.T) {
			got, errs := ParseImport(row.annotations, row.dataSource)
			if len(errs) != len(row.errs) {
				t.Fatalf("errors = %v; want %d", errs, len(row.errs))
			}
			for i, want := range row.errs {
				if !strings.Contains(errs[i].Text, want) {
					t.Errorf("error %d = %q; want %q", i, errs[i].Text, want)
				}
			}
			if len(errs) > 0 {
				return
			}
			if diff := cmp.Diff(row.want, got); diff != "" {
				t.Errorf("(-want,+got):\n%s", diff)
			}
		})
	}
}
