// Package suite holds the tests of the cluster level: real Pods, real guests, on the local cluster, which all of them share.
package suite
