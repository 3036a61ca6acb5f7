package plugin

import "podvirt.dev/internal/nl"

// nlHandle keeps the tests' signatures short.
type nlHandle = nl.Handle
