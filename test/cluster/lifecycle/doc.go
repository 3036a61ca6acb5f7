// Package lifecycle tests the local cluster's coming and going, with a cluster of its own beside the one that others share.
package lifecycle
