package api

import (
	"regexp"
	"sync"
)

// patterns remembers compiled patterns. All of them are constants of the contract, so there are few and they are good.
//
//nolint:gochecknoglobals // a cache of pure values
var patterns sync.Map

// compiled returns the pattern, anchored at both ends.
func compiled(pattern string) *regexp.Regexp { return unanchored("^(?:" + pattern + ")$") }

// unanchored returns the pattern as it stands.
func unanchored(pattern string) *regexp.Regexp {
	if re, ok := patterns.Load(pattern); ok {
		return re.(*regexp.Regexp) //nolint:forcetypeassert // only this function stores
	}
	re := regexp.MustCompile(pattern)
	patterns.Store(pattern, re)
	return re
}
