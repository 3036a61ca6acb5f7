// Package api is the contract of podvirt: what a user may write on a VM Pod, on a claim or in podvirt-config, and
// what the programs tell each other through Kubernetes objects.
//
// A VM is a Pod with the label podvirt.dev/vm. Its shape is in annotations podvirt.dev/KEY, its size in the
// resources of container "vm", its disks and files in the container's mount points. Two functions read it:
//
//   - [Parse] looks at annotations alone. It is all that a CNI plugin needs.
//   - [Resolve] looks at the whole Pod ([Pod]) and gives the [Machine]: the same values with every default filled
//     in, the vCPU count, the memory, the disks that exist and the order they boot in.
//
// Both report every mistake at once, in the words of vm.md 2.1. One table ([Annotations]) is behind the parser, the
// reference page docs/annotations.md, the admission policies in manifests/admission and the completion of the CLI.
//
// The package imports no client and no API type, so that small programs stay small; package
// podvirt.dev/api/podspec turns a corev1.Pod into a [Pod].
package api

//go:generate go run ./internal/generate
