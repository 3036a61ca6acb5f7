package api

import "strings"

// Patterns of the option grammar (vm.md 2.1). Quoted parts hold what would otherwise divide.
const (
	// ItemPattern matches one item between commas that is more than blanks.
	ItemPattern = ` *(?:[^", ]|"[^"]*")(?:[^",]|"[^"]*")*`
	// ItemsPattern matches a whole value.
	ItemsPattern = ItemPattern + `(?:,` + ItemPattern + `)*`
	// OptionValuePattern matches the value of an option: parts that are quoted or hold no blank.
	OptionValuePattern = `(?:[^" ]|"[^"]*")*`
	// PartPattern matches one of several values joined with +.
	PartPattern = `(?:[^"+]|"[^"]*")+`
)

// Texts about the option grammar, shared with the policies.
const (
	EmptyItem     = "empty item, or a double quote that is not closed"
	BlankInValue  = "a value with a blank stands in double quotes"
	EmptyValue    = "empty value"
	ListedTwice   = "listed twice"
	PolicyMessage = "policy is not one of force, require, optional, disable, forbid"
)

// item is one item of an option string, before it is judged.
type item struct {
	name  string
	value string // as written, quotes included
	bare  bool   // no "=": means true
}

// splitItems divides an option string; ok is false where its commas or quotes make no items.
func splitItems(text string) (items []item, ok bool) {
	if strings.TrimSpace(text) == "" {
		return nil, true
	}
	if !strings.Contains(text, `"`) {
		return splitPlain(text)
	}
	if !compiled(ItemsPattern).MatchString(text) {
		return nil, false
	}
	for _, part := range unanchored(ItemPattern).FindAllString(text, -1) {
		items = append(items, newItem(strings.TrimSpace(part)))
	}
	return items, true
}

// splitPlain is splitItems for text without quotes.
func splitPlain(text string) (items []item, ok bool) {
	for part := range strings.SplitSeq(text, ",") {
		part = strings.TrimSpace(part)
		if part == "" {
			return nil, false
		}
		items = append(items, newItem(part))
	}
	return items, true
}

func newItem(text string) item {
	name, value, found := strings.Cut(text, "=")
	if !found {
		return item{name: text, value: "true", bare: true}
	}
	return item{name: name, value: value}
}

// splitParts divides a value into those joined with +, without quotes.
func splitParts(value string) []string {
	if !strings.Contains(value, `"`) {
		return strings.Split(value, "+")
	}
	parts := unanchored(PartPattern).FindAllString(value, -1)
	for i := range parts {
		parts[i] = unquote(parts[i])
	}
	return parts
}

func unquote(value string) string { return strings.ReplaceAll(value, `"`, "") }
