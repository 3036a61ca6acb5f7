package libvirt

// #include <malloc.h>
import "C"

// Trim gives the memory that libvirt has freed back to the system. A start leaves megabytes of it behind.
func Trim() { C.malloc_trim(0) }
