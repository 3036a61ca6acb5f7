// Package devices has tests of the built device plugin on a kernel with an IOMMU, SR-IOV, mediated devices and KVM, and
// of containers that are handed what the plugin gave out. testdata/machine describes the machine.
package devices
