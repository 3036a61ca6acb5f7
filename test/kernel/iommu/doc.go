// Package iommu has tests that need an IOMMU and PCI devices to hand to user space. testdata/machine describes them.
package iommu
