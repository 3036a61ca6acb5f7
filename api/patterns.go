package api

// DeviceNamePattern is what names of devices are made of (vm.md 2.1), RE2, unanchored.
const DeviceNamePattern = `[a-z0-9](?:[a-z0-9.-]*[a-z0-9])?`

// Patterns of values, RE2, unanchored.
const (
	dnsLabelPattern = `[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?`
	uuidPattern     = `[0-9a-fA-F]{8}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{4}-[0-9a-fA-F]{12}`
	octetsPattern   = `[0-9a-fA-F]{2}(?:[:-][0-9a-fA-F]{2}){1,7}`
	pciPattern      = `[0-9a-f]{4}:[0-9a-f]{2}:[01][0-9a-f]\.[0-7]`
	machinePattern  = `(?:pc-q35|pc-i440fx|virt)-[0-9]{1,3}\.[0-9]{1,3}|s390-ccw-virtio(?:-[0-9]{1,3}\.[0-9]{1,3})?`
	vcpuListPattern = `\^?[0-9]{1,4}(?:-[0-9]{1,4})?(?:,\^?[0-9]{1,4}(?:-[0-9]{1,4})?)*`
	cellListPattern = `[0-9]{1,3}(?:,[0-9]{1,3})*`
	namePattern     = `[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?`
	reference       = namePattern + `(?:/` + namePattern + `)?`
	resourcePattern = `[a-z0-9](?:[a-z0-9.-]{0,251}[a-z0-9])?/[A-Za-z0-9](?:[A-Za-z0-9._-]{0,61}[A-Za-z0-9])?`
	ownerPattern    = `[1-9][0-9]{0,8}(?::[1-9][0-9]{0,8})?`
	hexPattern      = `0x[0-9a-fA-F]{1,16}`
	imagePattern    = `[^\s",]{1,512}`
	relativePath    = `[^/\s",][^\s",]{0,254}`
	absolutePath    = `/[^\s",]{0,254}`
	ipv4Pattern     = `(?:(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])\.){3}(?:25[0-5]|2[0-4][0-9]|1[0-9]{2}|[1-9]?[0-9])`
	ipv6Pattern     = `[0-9a-fA-F]{0,4}(?::[0-9a-fA-F]{0,4}){2,7}`
	domainPattern   = `[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?(?:\.[a-zA-Z0-9](?:[a-zA-Z0-9-]{0,61}[a-zA-Z0-9])?)*`
	portPattern     = `[0-9]{1,5}(?:-[0-9]{1,5})?(?:/(?:tcp|udp|sctp))?`
	sizePattern     = `[1-9][0-9]{2,4}x[1-9][0-9]{2,4}`
	jsonListPattern = `(?s)\s*\[.*\]\s*`
	jsonPattern     = `(?s)\s*[\[{].*[\]}]\s*`
)
