package policy

import (
	"fmt"
	"regexp"
	"strconv"
	"strings"
	"time"

	"podvirt.dev/api"
)

// str is a CEL string literal.
func str(text string) string { return strconv.Quote(text) }

// re is a CEL raw string literal with an anchored pattern.
func re(pattern string) string { return "r'^(?:" + pattern + ")$'" }

// list is a CEL list of strings.
func list(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = str(w)
	}
	return "[" + strings.Join(quoted, ", ") + "]"
}

// cut shortens what messages repeat, as api does.
func cut(x string) string {
	return fmt.Sprintf(`(size(%[1]s) > 253 ? %[1]s.substring(0, 253) + "…" : %[1]s)`, x)
}

// shown is a value inside an option string, safe to print.
func shown(x string) string { return cut(x) + `.replace("\\", "\\\\").replace("\"", "\\\"")` }

// quoted is a value between double quotes, safe to print.
func quoted(x string) string {
	return `"\"" + ` + shown(x) + ` + "\""`
}

// wrong is an expression that gives what is wrong with the string x, or "": the CEL form of api.Value.Check.
func wrong(v api.Value, x string) string {
	expression := fmt.Sprintf(`!%s.matches(%s) ? %s : `, x, re(v.Syntax()), str(v.WrongMessage()))
	if bounds := outside(v, x); bounds != "" {
		if free := freeWords(v); len(free) > 0 {
			// The words have no bounds, but may still not be supported.
			return "(" + expression + fmt.Sprintf(`%s.matches(%s) ? %s : `, x, re(words(free)), unsupported(v, x)) + bounds + unsupported(v, x) + ")"
		}
		expression += bounds
	}
	return "(" + expression + unsupported(v, x) + ")"
}

// freeWords are the values that bounds do not hold for.
func freeWords(v api.Value) []string {
	if v.Empty {
		return append([]string{""}, v.Words...)
	}
	return v.Words
}

// outside gives the tests of the bounds, each ending in " : ".
func outside(v api.Value, x string) string {
	measure, bound := "", func(n int64) string { return strconv.FormatInt(n, 10) }
	switch v.Form {
	case api.FormInt:
		measure = "int(" + x + ")"
	case api.FormText:
		measure = "size(" + x + ")"
	case api.FormDuration:
		measure, bound = "duration("+x+")", func(n int64) string { return `duration("` + time.Duration(n).String() + `")` }
	case api.FormQuantity:
		tests := ""
		if v.Min != 0 {
			tests = fmt.Sprintf(`quantity(%s).compareTo(quantity("%d")) < 0 ? %s : `, x, v.Min, str(v.BelowMessage()))
		}
		if v.Max != 0 {
			tests += fmt.Sprintf(`quantity(%s).compareTo(quantity("%d")) > 0 ? %s : `, x, v.Max, str(v.AboveMessage()))
		}
		return tests
	default:
		return ""
	}
	tests := ""
	if v.Min != 0 {
		tests = fmt.Sprintf(`%s < %s ? %s : `, measure, bound(v.Min), str(v.BelowMessage()))
	}
	if v.Max != 0 {
		tests += fmt.Sprintf(`%s > %s ? %s : `, measure, bound(v.Max), str(v.AboveMessage()))
	}
	return tests
}

// unsupported tells legal values that this version does not honour.
func unsupported(v api.Value, x string) string {
	if v.Empty {
		v.Empty = false
		return fmt.Sprintf(`(%s == "" ? "" : %s)`, x, unsupported(v, x))
	}
	switch {
	case v.Later && len(v.Now) == 0:
		return str(api.NotYet)
	case v.Later:
		return fmt.Sprintf(`(%s.matches(%s) ? "" : %s)`, x, re(words(v.Now)), str(api.NotYet))
	case len(v.NotNow) > 0:
		return fmt.Sprintf(`(%s.matches(%s) ? %s : "")`, x, re(words(v.NotNow)), str(api.NotYet))
	}
	return `""`
}

// parts divides a value into those joined with +.
func parts(x string) string {
	return fmt.Sprintf(`(%[1]s.contains("\"") ? %[1]s.findAll(r'%[2]s').map(p, p.replace("\"", "")) : %[1]s.split("+"))`, x, api.PartPattern)
}

// words is a pattern of words.
func words(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = regexp.QuoteMeta(w)
	}
	return strings.Join(quoted, "|")
}
