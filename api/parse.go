package api

// Parse reads the podvirt.dev/ annotations of a VM Pod. It reports every mistake that annotations alone show: unknown
// keys, bad values, options that contradict each other, a boot number used twice. Fields of wrong annotations stay
// zero in the VM.
func Parse(annotations map[string]string) (VM, Errors) {
	return VM{}, nil
}

// IsVMKey says whether an annotation marks its Pod as a VM for programs that see no labels (network.md 2.1): the
// annotation podvirt.dev/vm, or any that belongs on VM Pods only.
func IsVMKey(key string) bool {
	return key == KeyVM
}
