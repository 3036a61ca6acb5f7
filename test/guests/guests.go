// Package guests has the test guests: what is in them (tiny, debian), and tests that boot their disks with plain QEMU.
// The disks are built by the program images (docs/images.md).
package guests
