// Package bench measures podvirt beside what users would run instead, in one run on one machine, and prints ratios.
// Nothing here passes or fails by time.
package bench
