package launcher

import (
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// The variables that the guest looks at: the firmware's own word on Secure Boot (UEFI 2.10, 3.3) and one of the test's.
const (
	efivars    = "/sys/firmware/efi/efivars"
	secureBoot = "od -An -tx1 " + efivars + "/SecureBoot-8be4df61-93ca-11d2-aa0d-00e098032b8c"
	ownVar     = efivars + "/Own-706f6476-6972-7400-8000-000000000000"
)

// TestSecureBoot: with secure-boot the firmware refuses a kernel that nobody has signed, and starts Debian's shim, which
// starts Debian's GRUB and kernel (VM-051). What the guest writes into the firmware's variables and into its TPM is there in the
// next Pod of the VM (VM-053, VM-054).
func TestSecureBoot(t *testing.T) {
	t.Parallel()
	p := newHardwarePod(t, map[string]string{
		"memory": "256Mi", "firmware": "uefi,secure-boot", "tpm": "2.0,persistent=required",
		"disk.unsigned": "boot=1", "disk.root": "boot=2",
	})
	p.volume("/vm/state")
	p.spec.ReadOnly = true // swtpm has to do without /tmp
	boot := t.TempDir()
	takeOut(t, hardwareGuest(t), boot, "vmlinuz")
	unsign(t, filepath.Join(boot, "vmlinuz"), filepath.Join(boot, "unsigned"))
	efiDisk(t, p.claim("unsigned", 40*mib), filepath.Join(boot, "unsigned"))
	v := p.start()
	v.booted(1)
	if refused := regexp.MustCompile(`BdsDxe: failed to load Boot\d+ [^\n]*: Access Denied`); !refused.MatchString(v.out.String()) {
		t.Errorf("the firmware does not refuse an unsigned kernel:\n%.4000s", v.out)
	}
	s := v.shell()
	wantSecureBoot(t, s)
	s.wants(map[string]string{`printf '\7\0\0\0kept' >` + ownVar + "; tail -c 4 " + ownVar: `^kept$`})
	if c := v.condition("StateEphemeral"); c["status"] != "False" {
		t.Errorf("condition %v", c)
	}
	wantUnprivileged(t, v, "swtpm")
	wantTPM(t, s)
	s.typeLine("poweroff")
	v.wantEnd(0, `^PoweredOff: `)

	again := p.again(map[string]string{"memory": "256Mi", "firmware": "uefi,secure-boot", "tpm": "2.0"})
	v = again.start()
	v.booted(1)
	s = v.shell()
	wantSecureBoot(t, s)
	s.wants(map[string]string{"tail -c 4 " + ownVar: `^kept$`})
	if secret := s.tpm(nvRead); !strings.Contains(secret, hex.EncodeToString([]byte(sealed))) {
		t.Errorf("the TPM's secret after a restart: %s; want %q in it", secret, sealed)
	}
}

// TestShim: a direct boot under Secure Boot begins with shim (VM-058). It trusts Debian's GRUB, and not Debian 13's kernel, which
// has no section .sbat (https://github.com/rhboot/shim/blob/main/SBAT.md).
func TestShim(t *testing.T) {
	t.Parallel()
	boot := t.TempDir()
	takeOut(t, hardwareGuest(t), boot, "vmlinuz", "EFI/BOOT/BOOTX64.EFI", "EFI/BOOT/grubx64.efi")
	for file, says := range map[string]string{"EFI/BOOT/grubx64.efi": `GNU GRUB`, "vmlinuz": `Verification failed: \(0x1A\) Security Violation`} {
		t.Run(filepath.Base(file), func(t *testing.T) {
			t.Parallel()
			p := newPod(t, map[string]string{"firmware": "uefi,secure-boot", "kernel": "path=file,shim=shim.efi", "kernel-args": "quiet"})
			volume := p.volume("/vm/kernel")
			copyFile(t, filepath.Join(boot, "EFI/BOOT/BOOTX64.EFI"), filepath.Join(volume, "shim.efi"))
			copyFile(t, filepath.Join(boot, file), filepath.Join(volume, "file"))
			p.start().says(says, 1)
		})
	}
}

// TestStateProblem: what is kept and cannot be used is never replaced, and two Pods never share it (VM-053).
func TestStateProblem(t *testing.T) {
	t.Parallel()
	annotations := map[string]string{"start": "paused", "firmware": "uefi", "tpm": "2.0"}
	p := newPod(t, annotations)
	p.volume("/vm/state")
	v := p.start()
	v.paused()
	second := p.again(annotations).start()
	second.log.wait(t, `"step":"accelerator"`, 1)
	if strings.Contains(second.log.String(), `"step":"state"`) {
		t.Error("two Pods have one state")
	}
	v.ctl("poweroff")
	v.wantEnd(25, `^Destroyed: `)
	second.paused() // it waited for the first
	second.ctl("poweroff")
	second.wantEnd(25, `^Destroyed: `)
	if err := os.Truncate(filepath.Join(p.spec.Mounts["/vm/state"], "nvram.fd"), 1000); err != nil {
		t.Fatal(err)
	}
	p.again(annotations).start().wantEnd(12, `^VolumeProblem: /vm/state/nvram\.fd: 1000 bytes, and variables of this firmware have 540672: restore the file`)
}

// wantSecureBoot compares what firmware and kernel say.
func wantSecureBoot(t *testing.T, s *shell) {
	t.Helper()
	s.ask("mount -t efivarfs none " + efivars)
	s.wants(map[string]string{
		secureBoot:                             `^[0-9a-f ]{12}01$`,
		"dmesg | grep -i 'secure boot'":        `(?i)secure boot enabled`,
		"dmesg | grep 'Kernel is locked down'": `EFI Secure Boot`,
	})
}

// unsign takes the signature off a kernel: the directory of certificates of its PE header (Microsoft PE format, "Optional Header
// Data Directories") points to it.
func unsign(t *testing.T, from, to string) {
	t.Helper()
	raw, err := os.ReadFile(from)
	if err != nil {
		t.Fatal(err)
	}
	header := binary.LittleEndian.Uint32(raw[0x3c:])
	entry := raw[header+24+112+4*8:][:8] // of a 64-bit image
	if start := binary.LittleEndian.Uint32(entry); start == 0 || int(start) >= len(raw) {
		t.Fatalf("%s is not signed", from)
	} else {
		raw = append(raw[:start:start], raw[start+binary.LittleEndian.Uint32(entry[4:]):]...)
	}
	clear(raw[header+24+112+4*8:][:8])
	if err := os.WriteFile(to, raw, 0o644); err != nil {
		t.Fatal(err)
	}
}

// efiDisk makes a disk, without a partition table, of one FAT with a program that firmware starts.
func efiDisk(t *testing.T, disk, program string) {
	t.Helper()
	for _, argv := range [][]string{
		{"mkfs.vfat", "-F", "32", disk}, {"mmd", "-i", disk, "::/EFI", "::/EFI/BOOT"}, {"mcopy", "-i", disk, program, "::/EFI/BOOT/BOOTX64.EFI"},
	} {
		if out, err := exec.CommandContext(t.Context(), argv[0], argv[1:]...).CombinedOutput(); err != nil {
			t.Fatalf("%v: %v: %s", argv, err, out)
		}
	}
}

// Commands of TPM 2.0 (TCG TPM 2.0 Library, Part 3), with the password session of an empty password where one is wanted. An index
// of eight bytes keeps what the test seals; PCR 16 is for debugging.
const (
	tpmSession = "00000009" + "40000009" + "0000" + "01" + "0000"
	nvIndex    = "01800001"
	sealed     = "a secret"

	getRandom = "8001" + "0000000c" + "0000017b" + "0010"
	nvDefine  = "8002" + "0000002d" + "0000012a" + "40000001" + tpmSession + "0000" + "000e" + nvIndex + "000b" + "00060006" + "0000" + "0008"
	nvRead    = "8002" + "00000023" + "0000014e" + "40000001" + nvIndex + tpmSession + "0008" + "0000"
)

func nvWrite() string {
	return "8002" + "0000002b" + "00000137" + "40000001" + nvIndex + tpmSession + "0008" + hex.EncodeToString([]byte(sealed)) + "0000"
}

func pcrExtend(digest [32]byte) string {
	return "8002" + "00000041" + "00000182" + "00000010" + tpmSession + "00000001" + "000b" + hex.EncodeToString(digest[:])
}

// tpm gives the guest's TPM a command and returns the answer, both in hexadecimal.
func (s *shell) tpm(command string) string {
	s.v.t.Helper()
	escaped := regexp.MustCompile(`..`).ReplaceAllString(command, `\x$0`)
	answer := s.ask(`exec 3<>/dev/tpm0; printf '` + escaped + `' >&3; dd bs=4096 count=1 <&3 2>/dev/null | od -An -v -tx1 | tr -d ' \n'; echo; exec 3>&-`)
	if len(answer) < 20 || answer[12:20] != "00000000" {
		s.v.t.Errorf("the TPM answers %s with %q", command, answer)
		return strings.Repeat("-", 4096)
	}
	return answer
}

// wantTPM: random numbers differ, a PCR is extended as the standard says, a secret is sealed.
func wantTPM(t *testing.T, s *shell) {
	t.Helper()
	s.wants(map[string]string{"cat /sys/class/tpm/tpm0/tpm_version_major": `^2$`, "ls /sys/firmware/acpi/tables/TPM2": `TPM2`})
	if a, b := s.tpm(getRandom), s.tpm(getRandom); a == b || len(a) != 2*28 {
		t.Errorf("random numbers %s and %s", a, b)
	}
	digest := sha256.Sum256([]byte("measured"))
	s.tpm(pcrExtend(digest))
	want := sha256.Sum256(append(make([]byte, 32), digest[:]...))
	s.wants(map[string]string{"cat /sys/class/tpm/tpm0/pcr-sha256/16": fmt.Sprintf(`(?i)^%x$`, want)})
	s.tpm(nvDefine)
	s.tpm(nvWrite())
}
