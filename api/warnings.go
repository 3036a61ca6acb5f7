package api

// NoBootNumber is what a disk is warned of that firmware leaves out because other devices have numbers (VM-056).
const NoBootNumber = "has no boot number while others have one: it will not be tried"

// OneHardDisk returns what a numbered hard disk is warned of that BIOS leaves out for the first one, such as disk.root.
func OneHardDisk(first string) string {
	return "bios tries one hard disk, the first, which is " + first + "; firmware uefi tries all"
}
