// Package arch holds the tests of the house itself: who may import whom, that packages are documented, that every
// manifest and example parses strictly, that docs/requirements.tsv and the Makefile name tests that exist, and that make
// targets run what make test leaves to them.
package arch
