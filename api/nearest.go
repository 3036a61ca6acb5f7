package api

import (
	"slices"
	"strings"
)

// farthest is the edit distance up to which a word is called near (vm.md 2.1).
const farthest = 2

// nearestSuffix returns "; nearest: WORD", or "" where no word is near.
func nearestSuffix(written string, words []string) string {
	if near := Nearest(written, words); near != "" {
		return "; nearest: " + near
	}
	return ""
}

// Nearest returns the word a user probably meant: one at edit distance 1, capitals aside; else one that contains what
// was written; else one at distance 2; else one that is contained in it; else a usual synonym. The first of equals wins;
// "": none.
func Nearest(written string, words []string) string {
	if len(written) > 128 {
		return ""
	}
	lower := strings.ToLower(written)
	near, distance := nearestByEdits(lower, words)
	if near != "" && distance < farthest {
		return near
	}
	if i := slices.IndexFunc(words, func(w string) bool { return len(lower) >= 3 && strings.Contains(w, lower) }); i >= 0 {
		return words[i]
	}
	if near != "" {
		return near
	}
	if i := slices.IndexFunc(words, func(w string) bool { return len(w) >= 3 && strings.Contains(lower, w) }); i >= 0 {
		return words[i]
	}
	for _, synonym := range synonyms(lower) {
		if slices.Contains(words, synonym) {
			return synonym
		}
	}
	return ""
}

// nearestByEdits returns the word with the smallest edit distance up to farthest, if it has anything in common.
func nearestByEdits(lower string, words []string) (near string, distance int) {
	distance = farthest + 1
	for _, w := range words {
		d := editDistance(lower, strings.ToLower(w), distance-1)
		if d < distance && d < max(len(lower), len(w)) {
			near, distance = w, d
		}
	}
	return near, distance
}

// synonyms returns what other programs' words are called here.
func synonyms(lower string) []string {
	switch lower {
	case "yes", "y", "1", "on", "enabled", "enable":
		return []string{"true", "on"}
	case "no", "n", "0", "off", "disabled", "disable", "none":
		return []string{"false", "off", "none"}
	case "true":
		return []string{"on"}
	case "false":
		return []string{"off", "none"}
	case "std":
		return []string{"vga"}
	case "need", "needed", "required", "mandatory":
		return []string{"require"}
	case "nat":
		return []string{"masquerade"}
	case "qemu", "software", "emulation":
		return []string{"tcg"}
	case "ovmf", "edk2":
		return []string{"uefi"}
	case "seabios", "legacy":
		return []string{"bios"}
	case "x86_64", "x64":
		return []string{"amd64"}
	case "aarch64":
		return []string{"arm64"}
	}
	return nil
}

// editDistance returns the Levenshtein distance of a and b in bytes, or limit+1 where it is more than limit.
func editDistance(a, b string, limit int) int {
	if abs(len(a)-len(b)) > limit {
		return limit + 1
	}
	previous, current := make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range previous {
		previous[j] = j
	}
	for i := range len(a) {
		current[0] = i + 1
		least := current[0]
		for j := range len(b) {
			change := previous[j]
			if a[i] != b[j] {
				change++
			}
			current[j+1] = min(change, previous[j+1]+1, current[j]+1)
			least = min(least, current[j+1])
		}
		if least > limit {
			return limit + 1
		}
		previous, current = current, previous
	}
	return min(previous[len(b)], limit+1)
}

func abs(n int) int {
	if n < 0 {
		return -n
	}
	return n
}
