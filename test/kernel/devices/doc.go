// Package devices has tests of the built device plugin on a kernel with an IOMMU, SR-IOV, mediated devices and KVM, and
// of guests in that guest, which are handed what the plugin gave out. testdata/machine describes the machine.
package devices
