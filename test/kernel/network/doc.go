// Package network has tests of what podvirt's networks rely on in a kernel with VLANs. They run inside a guest:
//
//	make test-kernel
package network
