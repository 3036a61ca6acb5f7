// Package arch holds the tests of the house itself: who may import whom, that packages are documented, that every
// manifest and example parses strictly, and that docs/requirements.tsv names tests that exist.
package arch
