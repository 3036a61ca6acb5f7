package seed

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/diskfs/go-diskfs/backend/file"
	"github.com/diskfs/go-diskfs/filesystem/iso9660"
	"github.com/google/go-cmp/cmp"
)

const (
	laptop = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIE1nAu7NRpxeAqEe85HLT+VNkqRiuyJMRgAMNXT4qaqf ops@laptop"
	desk   = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIFO5KJhCJpZpYLaRzgCXAq+Q49oSzUJjrJYRHXSARsPH"
)

func container(files ...string) fstest.MapFS {
	m := fstest.MapFS{}
	for i := 0; i < len(files); i += 2 {
		m["vm/"+files[i]] = &fstest.MapFile{Data: []byte(files[i+1])}
	}
	return m
}

func input() Input {
	return Input{InstanceID: "shop/db1", Hostname: "db1", SSHUsers: []string{"ops"}, NICs: []NIC{{Name: "default", MAC: "02:aa:00:00:00:01", DHCP: true}}}
}

func TestBuild(t *testing.T) {
	metaWithKeys := "instance-id: shop/db1\nlocal-hostname: db1\npublic-keys:\n    - " + laptop + "\n"
	rows := []struct {
		name     string
		fs       fstest.MapFS
		input    func(*Input)
		want     map[string]string
		warnings []string
	}{
		{name: "nothing given", fs: container(), want: map[string]string{
			MetaData: "instance-id: shop/db1\nlocal-hostname: db1\n", UserData: ""}},
		{name: "only keys", fs: container("ssh-keys/ops/laptop", laptop+"\n"), want: map[string]string{
			MetaData: metaWithKeys,
			UserData: "#cloud-config\nusers:\n    - default\n    - name: ops\n      ssh_authorized_keys:\n        - \"" + laptop + "\"\n"}},
		{name: "keys go to the user of the cloud-config, the rest stays",
			fs: container("ssh-keys/ops/laptop", laptop, "cloud-init/user-data",
				"#cloud-config\n# who\nusers: [{name: ops, groups: [sudo]}] # us\npackages: [qemu-guest-agent]\n"),
			want: map[string]string{MetaData: metaWithKeys,
				UserData: "#cloud-config\n# who\nusers: [{name: ops, groups: [sudo], ssh_authorized_keys: [\"" + laptop +
					"\"]}] # us\npackages: [qemu-guest-agent]\n"}},
		{name: "another user is added", fs: container("ssh-keys/ops/laptop", laptop, "cloud-init/user-data", "#cloud-config\nusers:\n- bob\n"),
			want: map[string]string{MetaData: metaWithKeys,
				UserData: "#cloud-config\nusers:\n    - bob\n    - name: ops\n      ssh_authorized_keys:\n        - \"" + laptop + "\"\n"}},
		{name: "a user that is only a name", fs: container("ssh-keys/ops/laptop", laptop, "cloud-init/user-data", "#cloud-config\nusers: [ops]\n"),
			want: map[string]string{MetaData: metaWithKeys,
				UserData: "#cloud-config\nusers: [{name: ops, ssh_authorized_keys: [\"" + laptop + "\"]}]\n"}},
		{name: "own keys are not touched", fs: container("ssh-keys/ops/laptop", laptop, "cloud-init/user-data",
			"#cloud-config\nusers: [{name: root, ssh_authorized_keys: [x]}]\n"),
			want: map[string]string{MetaData: metaWithKeys, UserData: "#cloud-config\nusers: [{name: root, ssh_authorized_keys: [x]}]\n"}},
		{name: "script: users in vendor-data", fs: container("ssh-keys/ops/laptop", laptop, "cloud-init/user-data", "#!/bin/sh\ntrue\n"),
			want: map[string]string{MetaData: metaWithKeys, UserData: "#!/bin/sh\ntrue\n",
				VendorData: "#cloud-config\nusers:\n    - default\n    - name: ops\n      ssh_authorized_keys:\n        - \"" + laptop + "\"\n"}},
		{name: "script and vendor-data", fs: container("ssh-keys/ops/laptop", laptop, "cloud-init/user-data", "#!/bin/sh\n",
			"cloud-init/vendor-data", "#cloud-config\n"),
			want: map[string]string{MetaData: metaWithKeys, UserData: "#!/bin/sh\n", VendorData: "#cloud-config\n"},
			warnings: []string{"user-data: is no #cloud-config and vendor-data is given: " +
				"the keys of /vm/ssh-keys are for the image's default user only"}},
		{name: "own meta-data wins, what it lacks is added", fs: container("cloud-init/meta-data",
			"# mine\ninstance-id: other\n"), want: map[string]string{
			MetaData: "# mine\ninstance-id: other\nlocal-hostname: db1\n", UserData: ""}},
		{name: "whole meta-data stays byte for byte", fs: container("cloud-init/meta-data", "{instance-id: a,   local-hostname: b}"),
			want: map[string]string{MetaData: "{instance-id: a,   local-hostname: b}", UserData: ""}},
		{name: "mistakes are named by line", fs: container("cloud-init/user-data", "#cloud-config\na: b\n  c: [\n",
			"cloud-init/meta-data", "a: [\n", "cloud-init/network-config", "b: {\n", "cloud-init/userdata", "x",
			"ssh-keys/ops/bad", "no key", "ssh-keys/we ird/a", laptop),
			input: func(i *Input) { i.SSHUsers = []string{"ops", "we ird", "absent"} },
			want:  map[string]string{MetaData: "a: [\n", UserData: "#cloud-config\na: b\n  c: [\n", NetworkConfig: "b: {\n"},
			warnings: []string{
				"/vm/cloud-init/userdata: not one of user-data, meta-data, network-config, vendor-data; ignored",
				"/vm/ssh-keys/ops/bad: holds a line that is no public key; ignored",
				"/vm/ssh-keys/we ird: no name of a user; ignored",
				"meta-data: line 1: not valid YAML; left as it is",
				"user-data: line 3: not valid YAML",
				"network-config: line 1: not valid YAML",
			}},
		{name: "MAC that no NIC has", fs: container("cloud-init/network-config",
			"version: 2\nethernets:\n  a: {match: {macaddress: \"02:AA:00:00:00:01\"}}\n  b: {match: {macaddress: \"02:aa:00:00:00:99\"}}\n"),
			want: map[string]string{MetaData: "instance-id: shop/db1\nlocal-hostname: db1\n", UserData: "", NetworkConfig: "version: 2\n" +
				"ethernets:\n  a: {match: {macaddress: \"02:AA:00:00:00:01\"}}\n  b: {match: {macaddress: \"02:aa:00:00:00:99\"}}\n"},
			warnings: []string{`network-config: line 4: no NIC has the MAC address "02:aa:00:00:00:99"`}},
		{name: "NIC without DHCP", fs: container(), input: func(i *Input) {
			i.NICs = append(i.NICs, NIC{Name: "net1", MAC: "02:aa:00:00:00:02", Addresses: []netip.Prefix{netip.MustParsePrefix("10.10.10.14/24")},
				Gateways: []netip.Addr{netip.MustParseAddr("10.10.10.1")}, DNS: []netip.Addr{netip.MustParseAddr("10.96.0.10")}, Search: []string{"example"}})
		}, want: map[string]string{MetaData: "instance-id: shop/db1\nlocal-hostname: db1\n", UserData: "", NetworkConfig: `version: 2
ethernets:
    default:
        match:
            macaddress: "02:aa:00:00:00:01"
        dhcp4: true
        dhcp6: true
    net1:
        match:
            macaddress: "02:aa:00:00:00:02"
        addresses:
            - "10.10.10.14/24"
        routes:
            - to: 0.0.0.0/0
              via: "10.10.10.1"
        nameservers:
            addresses:
                - "10.96.0.10"
            search:
                - "example"
`}},
	}
	for _, row := range rows {
		t.Run(row.name, func(t *testing.T) {
			in := input()
			if row.input != nil {
				row.input(&in)
			}
			got, err := Build(row.fs, in)
			if err != nil {
				t.Fatal(err)
			}
			files := make(map[string]string)
			for _, f := range got.Files {
				files[f.Name] = string(f.Content)
			}
			if diff := cmp.Diff(row.want, files); diff != "" {
				t.Errorf("files (-want,+got)\n%s", diff)
			}
			if diff := cmp.Diff(row.warnings, got.Warnings); diff != "" {
				t.Errorf("warnings (-want,+got)\n%s", diff)
			}
		})
	}
}

func TestLimit(t *testing.T) {
	large := strings.Repeat("x", MaxSize-10)
	if _, err := Build(container("cloud-init/user-data", large, "cloud-init/vendor-data", "12345678901"), input()); !errors.Is(err, ErrTooLarge) {
		t.Errorf("err = %v, want %v", err, ErrTooLarge)
	}
	if _, err := Build(container("cloud-init/user-data", large, "cloud-init/vendor-data", "1234567890"), input()); err != nil {
		t.Errorf("just small enough: %v", err)
	}
}

// Warnings reach logs and conditions: no content of a Secret may stand in them.
func TestWarningsHoldNoSecrets(t *testing.T) {
	const secret = "hunter2"
	seed, err := Build(container("cloud-init/user-data", "#cloud-config\npassword: "+secret+"\n  x: "+secret+"\n", "ssh-keys/ops/key", secret,
		"cloud-init/meta-data", secret+": ["+secret+"\n", "cloud-init/network-config", "*"+secret), input())
	if err != nil {
		t.Fatal(err)
	}
	if all := strings.Join(seed.Warnings, "\n"); len(seed.Warnings) != 4 || strings.Contains(all, secret) {
		t.Errorf("warnings:\n%s", all)
	}
}

func TestWrite(t *testing.T) {
	seed, err := Build(container("ssh-keys/ops/a", laptop, "ssh-keys/ops/b", laptop+"\n# comment\n\n"+desk), input())
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "seed.iso")
	if err := seed.Write(path, time.Unix(1e9, 0)); err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(path)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v; want mode 0600", info, err)
	}
	image, err := file.OpenFromPath(path, true)
	if err != nil {
		t.Fatal(err)
	}
	defer image.Close()
	fsys, err := iso9660.Read(image, info.Size(), 0, 2048)
	if err != nil {
		t.Fatal(err)
	}
	user, err := fsys.ReadFile(UserData)
	if err != nil || strings.Count(string(user), laptop) != 1 || !strings.Contains(string(user), desk) {
		t.Errorf("user-data = %v\n%s\nwant each key once", err, user)
	}
	if label := strings.TrimRight(fsys.Label(), " \x00"); label != Label {
		t.Errorf("label %q", label)
	}
}

func FuzzUserData(f *testing.F) {
	f.Add([]byte("#cloud-config\nusers: [{name: ops}]\n"))
	f.Add([]byte("#cloud-config\n&a [*a]\n"))
	f.Fuzz(func(t *testing.T, content []byte) {
		fsys := container("ssh-keys/ops/a", laptop)
		for _, name := range []string{UserData, MetaData, NetworkConfig} {
			fsys["vm/cloud-init/"+name] = &fstest.MapFile{Data: content}
		}
		if _, err := Build(fsys, input()); err != nil && !errors.Is(err, ErrTooLarge) {
			t.Error(err)
		}
	})
}
