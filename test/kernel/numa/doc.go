// Package numa has tests that need NUMA nodes with memory and huge pages of their own. testdata/machine describes them.
package numa
