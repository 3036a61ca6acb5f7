// Package scheduler measures the scheduler plugin against the scheduler of Kubernetes on one API server, with Nodes that
// exist there only, and compares ways to pack VMs. Nothing passes or fails by time.
package scheduler
