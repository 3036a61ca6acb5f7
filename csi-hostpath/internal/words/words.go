// Package words finds the word that somebody probably meant.
package words

// Nearest returns the candidate with the smallest edit distance to word, the first of several; "" without candidates.
func Nearest(word string, candidates []string) string {
	best, nearest := -1, ""
	for _, candidate := range candidates {
		if d := distance(word, candidate); best < 0 || d < best {
			best, nearest = d, candidate
		}
	}
	return nearest
}

// distance is Levenshtein's.
func distance(a, b string) int {
	row := make([]int, len(b)+1)
	for j := range row {
		row[j] = j
	}
	for i := 1; i <= len(a); i++ {
		diagonal := row[0]
		row[0] = i
		for j := 1; j <= len(b); j++ {
			change := diagonal
			if a[i-1] != b[j-1] {
				change++
			}
			diagonal = row[j]
			row[j] = min(change, row[j]+1, row[j-1]+1)
		}
	}
	return row[len(b)]
}
