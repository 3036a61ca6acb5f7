package api

import (
	"crypto/sha1" //nolint:gosec // UUIDv5 is defined with SHA-1 (RFC 9562 5.5)
	"fmt"
	"hash/fnv"
)

// DefaultUUID returns the UUIDv5 of namespace/name in a space of our own, so that a VM keeps its identity over
// restarts and two VMs of one name in two namespaces differ (VM-064).
func DefaultUUID(namespace, name string) string {
	// The space is the UUIDv5 of "podvirt.dev" in the DNS space of RFC 9562.
	dns := [16]byte{0x6b, 0xa7, 0xb8, 0x10, 0x9d, 0xad, 0x11, 0xd1, 0x80, 0xb4, 0x00, 0xc0, 0x4f, 0xd4, 0x30, 0xc8}
	u := uuid5(uuid5(dns, "podvirt.dev"), namespace+"/"+name)
	return fmt.Sprintf("%x-%x-%x-%x-%x", u[0:4], u[4:6], u[6:8], u[8:10], u[10:16])
}

func uuid5(space [16]byte, name string) [16]byte {
	sum := sha1.Sum(append(space[:], name...)) //nolint:gosec // see the import
	var u [16]byte
	copy(u[:], sum[:])
	u[6] = u[6]&0x0f | 0x50
	u[8] = u[8]&0x3f | 0x80
	return u
}

// DefaultSerial returns the serial number of a disk that was given none: its name where the bus carries that many
// characters, else the readable start of the name and a hash of all of it.
func DefaultSerial(name string, limit int) string {
	if len(name) <= limit {
		return name
	}
	h := fnv.New32a()
	h.Write([]byte(name))
	hash := fmt.Sprintf("-%08x", h.Sum32())
	return name[:limit-len(hash)] + hash
}
