package launcher

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"podvirt.dev/internal/require"
)

// claim mounts a volume with a disk.img of a size, as a claim of our CSI driver has it, and returns the file.
func (p *pod) claim(name string, size int64) string {
	p.t.Helper()
	path := filepath.Join(p.volume("/vm/disks/"+name), "disk.img")
	err := errors.Join(os.WriteFile(path, nil, 0o660), os.Truncate(path, size), os.Chown(path, userID, userID))
	if err != nil {
		p.t.Fatal(err)
	}
	return path
}

// blockDevice is a disk as the guest's kernel shows it below /sys/block.
type blockDevice struct {
	Name, Serial, Vendor, Model, WWN, Cache, Path string
	Sectors                                       int64
	ReadOnly, Removable, Rotational, Discard      bool
	Logical, Physical, Queues                     int
}

// survey prints one line for each disk. A USB disk says its serial number to the bus, not to the SCSI layer.
const survey = `for d in /sys/block/[vs][dr]*; do f=$(readlink -f $d/device); q=$d/queue; ` +
	`serial=$(cat $d/serial || tail -c +5 $d/device/vpd_pg80 || cat $f/../../../../serial); ` +
	`echo "|${d##*/}|$serial|$(cat $d/device/vendor)|$(cat $d/device/model)|$(cat $d/device/wwid)|$(cat $q/write_cache)|$f|$(cat $d/size)` +
	`|$(cat $d/ro)|$(cat $d/removable)|$(cat $q/rotational)|$(cat $q/discard_max_bytes)|$(cat $q/logical_block_size)` +
	`|$(cat $q/physical_block_size)|$(ls $d/mq | wc -l)|"; done 2>/dev/null`

// blockDevices are the guest's disks by their serial numbers, a CD-ROM by its name.
func (s *shell) blockDevices() map[string]blockDevice {
	s.v.t.Helper()
	found := map[string]blockDevice{}
	for line := range strings.Lines(s.ask(survey)) {
		f := strings.Split(strings.ReplaceAll(line, "\x00", ""), "|")
		for i := range f {
			f[i] = strings.TrimSpace(f[i])
		}
		if len(f) != 17 {
			s.v.t.Fatalf("the guest says of a disk %q", line)
		}
		count := func(text string) int {
			n, _ := strconv.Atoi(text)
			return n
		}
		if f[2] == "" {
			f[2] = f[1] // a CD-ROM says no number
		}
		found[f[2]] = blockDevice{
			Name: f[1], Serial: f[2], Vendor: f[3], Model: f[4], WWN: f[5], Cache: f[6], Path: f[7], Sectors: int64(count(f[8])),
			ReadOnly: f[9] == "1", Removable: f[10] == "1", Rotational: f[11] == "1", Discard: count(f[12]) > 0,
			Logical: count(f[13]), Physical: count(f[14]), Queues: count(f[15]),
		}
	}
	return found
}

// mib is a MiB in bytes.
const mib = 1 << 20

// claims are the sizes of the claims of TestDisks. scsi is what a claim of 1000000001 bytes has: whole blocks of 4 KiB.
func claims() map[string]int64 {
	return map[string]int64{
		"fast": 64 * mib, "one": 1 << 30, "large": 20 << 30, "scsi": 1000001536, "4k": 64 * mib, "sata": 64 * mib, "usb": 32 * mib,
		"fixed": 16 * mib,
	}
}

// wantedDisk is what a guest must see of a disk.
type wantedDisk struct {
	serial string
	path   string // pattern
	size   int64  // bytes; 0: any
	says   string
	holds  func(d blockDevice) bool
}

func wantedDisks() []wantedDisk {
	size := claims()
	return []wantedDisk{
		{"root", `/virtio\d`, 0, "a queue for each CPU, discard", func(d blockDevice) bool { return d.Queues == 2 && !d.ReadOnly && d.Discard }},
		{"FAST", `/virtio\d`, size["fast"], "no write cache", func(d blockDevice) bool { return d.Cache == "write through" }},
		{"one", `/virtio\d`, size["one"], "one queue", func(d blockDevice) bool { return d.Queues == 1 && d.Cache == "write back" }},
		{"large", `/virtio\d`, size["large"], "512/4096", func(d blockDevice) bool { return d.Logical == 512 && d.Physical == 4096 }},
		{"scsi", `/virtio\d+/host`, size["scsi"], "names, WWN, spinning", func(d blockDevice) bool {
			return d.Vendor == "PODVIRT" && d.Model == "example" && d.WWN == "naa.5000c50015ea71ad" && d.Rotational && d.Cache == "write through"
		}},
		{"4k", `/virtio\d+/host`, size["4k"], "4096", func(d blockDevice) bool { return d.Logical == 4096 && d.Physical == 4096 }},
		{"sata", `/ata\d+/`, size["sata"], "not spinning, discard", func(d blockDevice) bool { return !d.Rotational && d.Discard }},
		{"STICK", `/usb\d+/`, size["usb"], "removable", func(d blockDevice) bool { return d.Removable }},
		{"fixed", `/virtio\d`, size["fixed"], "read-only", func(d blockDevice) bool { return d.ReadOnly }},
		{"empty", `/virtio\d`, 10 * mib, "a write cache", func(d blockDevice) bool { return d.Cache == "write back" }},
		{"sr0", `/ata\d+/`, 0, "a CD-ROM", func(d blockDevice) bool { return d.Removable && d.Logical == 2048 }},
	}
}

// TestDisks gives one guest a disk on every bus and with every option that a guest can see, and looks what it sees
// (VM-074, VM-075, VM-077, ST-016).
func TestDisks(t *testing.T) {
	t.Parallel()
	p := newHardwarePod(t, map[string]string{
		"memory": "256Mi", "cpu-topology": "cores=2", "cpu-model": "qemu64",
		"disk.fast":  "bus=virtio,cache=directsync,serial=FAST",
		"disk.one":   "queues=1,cache=writeback",
		"disk.large": "cache=none,io=threads,blocksize=512/4096",
		"disk.scsi":  "bus=scsi,vendor=PODVIRT,product=example,wwn=5000c50015ea71ad,rotational=true,cache=writethrough",
		"disk.4k":    "bus=scsi,blocksize=4096",
		"disk.sata":  "bus=sata,rotational=false",
		"disk.usb":   "bus=usb,removable=true,serial=STICK",
		"disk.fixed": "readonly=true",
		"disk.empty": "empty=10Mi,cache=unsafe",
	})
	files := map[string]string{}
	for name, size := range claims() {
		files[name] = p.claim(name, size)
	}
	tableFor512(t, files["4k"])
	tools := filepath.Join(p.volume("/vm/cdroms/tools"), "tools.iso")
	if err := os.WriteFile(tools, make([]byte, 8*mib), 0o644); err != nil {
		t.Fatal(err)
	}
	v := p.start()
	v.booted(1)
	s := v.shell()
	s.await("ls /sys/block | grep -c '^[vs][dr]'", `^11$`)
	seen := s.blockDevices()
	for _, row := range wantedDisks() {
		d, found := seen[row.serial]
		if !found || !regexp.MustCompile(row.path).MatchString(d.Path) || !row.holds(d) {
			t.Errorf("disk %s: %+v; want %s at %s", row.serial, d, row.says, row.path)
		}
		if row.size > 0 && d.Sectors*512 != row.size {
			t.Errorf("disk %s has %d bytes; want %d", row.serial, d.Sectors*512, row.size)
		}
	}
	wantWarning(t, v, "podvirt.dev/disk.4k: blocksize=4096: what is on the disk was laid out for blocks of 512 bytes: the guest will not find it")
	wantModes(t, v)
	for _, serial := range []string{"one", "scsi", "sata"} {
		t.Run("trim "+serial, func(t *testing.T) { wantTrim(t, s, seen[serial].Name, files[serial]) })
	}
}

// tableFor512 writes what a disk is known by that was partitioned in blocks of 512 bytes.
func tableFor512(t *testing.T, path string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	_, err = f.WriteAt([]byte("EFI PART"), 512)
	if err := errors.Join(err, f.Close()); err != nil {
		t.Fatal(err)
	}
}

// wantWarning looks for a warning in the launcher's status, in its log and on stderr.
func wantWarning(t *testing.T, v *vm, text string) {
	t.Helper()
	if all := fmt.Sprint(v.state()["warnings"]); !strings.Contains(all, text) {
		t.Errorf("status warns of %s; want %q", all, text)
	}
	line := regexp.MustCompile(`\{[^\n]*"warning"[^\n]*` + regexp.QuoteMeta(text))
	if log := v.ctl("log"); !line.MatchString(log) || !line.MatchString(v.log.String()) {
		t.Errorf("log and stderr have no line about %q:\n%s\n%s", text, log, v.log)
	}
}

// wantModes looks at how QEMU has opened the files: O_DIRECT and O_DSYNC are the kernel's word for it, the engine and what
// becomes of flushes QEMU's command line's (VM-075).
func wantModes(t *testing.T, v *vm) {
	t.Helper()
	pid := strconv.Itoa(hostPID(t, v, "qemu-system-x86"))
	raw, err := os.ReadFile("/proc/" + pid + "/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for file, want := range map[string]struct {
		direct bool
		nodes  string // pattern of the node of the file
	}{
		"/vm/disks/fast/disk.img":  {true, `"aio":"native".*"cache":\{"direct":true,"no-flush":false\}`},
		"/vm/disks/one/disk.img":   {false, `"aio":"threads".*"cache":\{"direct":false,"no-flush":false\}`},
		"/vm/disks/large/disk.img": {true, `"aio":"threads".*"cache":\{"direct":true,"no-flush":false\}`},
		"/vm/disks/scsi/disk.img":  {false, `"aio":"threads".*"cache":\{"direct":false,"no-flush":false\}`},
		"/vm/disks/sata/disk.img":  {true, `"aio":"native".*"cache":\{"direct":true,"no-flush":false\}`}, // what nobody asked for
		"/vm/scratch/empty.qcow2":  {false, `"aio":"threads".*"cache":\{"direct":false,"no-flush":true\}`},
	} {
		node := regexp.MustCompile(`\{[^\x00]*"filename":"` + regexp.QuoteMeta(file) + `"[^\x00]*`).FindString(string(raw))
		if !regexp.MustCompile(want.nodes).MatchString(node) {
			t.Errorf("%s: %s; want %s", file, node, want.nodes)
		}
		if direct, opened := openedDirect(pid, file); !opened || direct != want.direct {
			t.Errorf("%s: open %v, O_DIRECT %v; want %v", file, opened, direct, want.direct)
		}
	}
}

// openedDirect says whether a process has a file open, and whether with O_DIRECT in every place.
func openedDirect(pid, file string) (direct, opened bool) {
	links, _ := filepath.Glob("/proc/" + pid + "/fd/*")
	direct = true
	for _, link := range links {
		if target, err := os.Readlink(link); err != nil || target != file {
			continue
		}
		info, err := os.ReadFile("/proc/" + pid + "/fdinfo/" + filepath.Base(link))
		flags := regexp.MustCompile(`flags:\s*([0-7]+)`).FindSubmatch(info)
		if err != nil || flags == nil {
			continue
		}
		value, _ := strconv.ParseInt(string(flags[1]), 8, 64)
		opened, direct = true, direct && value&syscall.O_DIRECT != 0
	}
	return direct, opened
}

// wantTrim writes a file in the guest, removes it, and looks for its blocks in the file on the node.
func wantTrim(t *testing.T, s *shell, device, file string) {
	t.Helper()
	const written = 16 << 20
	made := s.ask("mkdir -p /mnt; umount /data; mke2fs /dev/" + device + " && mount -t ext4 /dev/" + device + " /mnt && " +
		"dd if=/dev/urandom of=/mnt/big bs=1M count=16; sync")
	full := allocated(t, file)
	answer := s.ask("rm /mnt/big && sync && fstrim -v /mnt; umount /mnt")
	if freed := full - allocated(t, file); full < written || freed < written {
		t.Errorf("%s: %d bytes on the node, of which fstrim freed %d; want %d: %s", device, full, freed, written, made+answer)
	}
}

// allocated is how much a sparse file takes, in bytes.
func allocated(t *testing.T, path string) int64 {
	t.Helper()
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	return st.Blocks * 512
}

// TestNoDirectIO: without a word a file system without O_DIRECT is written through; what it cannot give is refused (VM-075).
func TestNoDirectIO(t *testing.T) {
	t.Parallel()
	start := func(cache string) *vm {
		p := newPod(t, map[string]string{"start": "paused", "disk.data": "bus=virtio" + cache})
		dir := p.volume("/vm/disks/data")
		if err := syscall.Mount("none", dir, "ramfs", 0, ""); err != nil { // the kernel's one without O_DIRECT
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = syscall.Unmount(dir, syscall.MNT_DETACH) })
		path := filepath.Join(dir, "disk.img")
		if err := errors.Join(os.WriteFile(path, make([]byte, 1<<20), 0o660), os.Chown(path, userID, userID), os.Chmod(dir, 0o755)); err != nil {
			t.Fatal(err)
		}
		return p.start()
	}
	start(",cache=none").wantEnd(10, `^BadConfig: podvirt\.dev/disk\.data: cache=none: the file system of /vm/disks/data has no O_DIRECT$`)
	v := start("")
	v.paused()
	if xml := v.ctl("xml"); !regexp.MustCompile(`cache='writethrough'[^>]*io='threads'(?s:.{1,200})/vm/disks/data/disk.img`).MatchString(xml) {
		t.Errorf("no writethrough for /vm/disks/data:\n%s", xml)
	}
}

// paused waits for a VM that was to start so.
func (v *vm) paused() {
	v.t.Helper()
	v.eventually("paused", func() bool {
		out, _, _ := v.inside(nil, "/usr/bin/launcher", "ctl", "status")
		return strings.Contains(out, "paused (boot)")
	})
}

func sum(t *testing.T, path string) [sha256.Size]byte {
	t.Helper()
	raw, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return sha256.Sum256(raw)
}

// TestManyDisks: a guest with two hundred disks finds them all (VM-074).
func TestManyDisks(t *testing.T) {
	t.Parallel()
	const many = 200
	annotations := map[string]string{"memory": "256Mi"}
	for i := range many {
		annotations[fmt.Sprintf("disk.d%03d", i)] = "bus=scsi"
	}
	p := newHardwarePod(t, annotations)
	for i := range many {
		p.claim(fmt.Sprintf("d%03d", i), 1<<20)
	}
	v := p.start()
	v.booted(1)
	s := v.shell()
	s.await("ls -d /sys/block/sd* | wc -l", fmt.Sprintf(`^%d$`, many))
	s.await("for d in /sys/block/sd*; do tail -c +5 $d/device/vpd_pg80; echo; done | sort -u | grep -c ^d", fmt.Sprintf(`^%d$`, many))
	controllers := "for d in /sys/block/sd*; do readlink -f $d/device; done | sed 's,/target.*,,' | sort -u"
	if answer := s.ask(controllers); strings.Count(answer, "/virtio") != 1 {
		t.Errorf("controllers: %s; want one", answer)
	}
}

// TestLockedByAnother: a VM does not get a loop device that another VM writes, says so, and changes nothing (VM-083).
func TestLockedByAnother(t *testing.T) {
	t.Parallel() // it waits for a minute
	require.Root(t)
	backing := filepath.Join(t.TempDir(), "backing")
	if err := errors.Join(os.WriteFile(backing, nil, 0o600), os.Truncate(backing, 16<<20)); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command("losetup", "--find", "--show", backing).Output()
	require.Feature(t, err == nil, "loop devices")
	loop := strings.TrimSpace(string(out))
	t.Cleanup(func() { _ = exec.Command("losetup", "--detach", loop).Run() })
	for _, kind := range []string{"file", "device"} {
		t.Run(kind, func(t *testing.T) {
			t.Parallel()
			first, second := newPod(t, map[string]string{"start": "paused"}), newPod(t, nil)
			path := backing
			if kind == "file" {
				path = first.claim("data", 16<<20)
				second.spec.Mounts["/vm/disks/data"] = filepath.Dir(path)
			} else {
				first.spec.Devices = map[string]string{"/vm/disks/data": loop}
				second.spec.Devices = first.spec.Devices
			}
			first.start().paused()
			before := sum(t, path)
			second.start().wantEnd(12, `^VolumeProblem: /vm/disks/data(/disk\.img)?: locked by another QEMU$`)
			if sum(t, path) != before {
				t.Error("the disk has changed")
			}
		})
	}
}
