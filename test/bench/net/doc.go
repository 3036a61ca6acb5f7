// Package net measures the CNI plugin against the upstream one on the same machine in the same run: make bench-net.
package net
