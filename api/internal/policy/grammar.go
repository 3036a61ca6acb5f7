package policy

import (
	"fmt"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"

	"podvirt.dev/api"
)

// grammar returns the variables that judge each annotation by itself. They read variables.a, the annotations of the
// VM Pod or template, and end in "grammar", a list of whole lines. Values of one grammar are judged by one expression,
// whichever annotation or option they stand in.
func grammar() []admissionv1.Variable {
	rows := api.Annotations()
	variables := []admissionv1.Variable{
		{Name: "keys", Expression: `variables.a.filter(k, k.startsWith("podvirt.dev/"))`},
		{Name: "odd", Expression: oddValues()},
		{Name: "known", Expression: knownKeys(rows)},
		{Name: "later", Expression: laterKeys(rows)},
		{Name: "unknown", Expression: `variables.keys.filter(k, !(k in variables.known) && !k.matches(` + deviceKey(rows) + `)).map(k, k
  + ": unknown annotation")`},
		{Name: "names", Expression: deviceNames(rows)},
		{Name: "skipped", Expression: `variables.odd + variables.names + variables.later`},
		{Name: "read", Expression: `variables.keys.filter(k, !variables.skipped.exists(l, l.startsWith(k + ": ")))`},
		{Name: "optionsOf", Expression: optionsOf(rows)},
		{Name: "items", Expression: items()},
		{Name: "main", Expression: `variables.items.transformMap(k, items, ` + hasMain(rows) + ` && items.size() > 0 && !items[0].contains("=")
  && !(items[0] in variables.optionsOf[?k].orValue([])), items[0])`},
		{Name: "records", Expression: records()},
		{Name: "twice", Expression: `variables.records.transformMap(k, rs, rs.map(r, r[0]).filter(n, rs
  .filter(r, r[0] == n).size() > 1).distinct())`},
		{Name: "first", Expression: `variables.records.transformMap(k, rs, lists.range(rs.size()).filter(i, rs
  .map(r, r[0]).indexOf(rs[i][0]) == i).map(i, rs[i]))`},
		{Name: "empty", Expression: emptyOptions(rows)},
		{Name: "itemLines", Expression: itemLines()},
		{Name: "values", Expression: soundValues()},
	}
	parts := []string{"variables.later", "variables.odd", "variables.unknown", "variables.names", "variables.empty", "variables.itemLines"}
	judged := slices.Concat(split("plain", plain(rows), 6, told), split("main", mains(rows), 6, told), split("option", optionValues(rows), 6, toldOption))
	for _, g := range judged {
		variables = append(variables, admissionv1.Variable{Name: g.name, Expression: g.expression})
		parts = append(parts, "variables."+g.name)
	}
	variables = append(variables,
		admissionv1.Variable{Name: "featureItems", Expression: setItems(rows)},
		admissionv1.Variable{Name: "features", Expression: set(rows)})
	parts = append(parts, "variables.features")
	return append(variables,
		admissionv1.Variable{Name: "grammar", Expression: strings.Join(parts, " + ")},
		admissionv1.Variable{Name: "good", Expression: `variables.read.filter(k, !variables.grammar.exists(l, l.startsWith(k + ": ")))`},
		admissionv1.Variable{Name: "word", Expression: `variables.a.transformMap(k, v, k in variables.good, v)`},
		admissionv1.Variable{Name: "mainWord", Expression: `variables.main.transformMap(k, w, k in variables.good, w)`},
		admissionv1.Variable{Name: "o", Expression: `variables.first.transformMap(k, rs, k in variables.good, rs.transformMapEntry(i, r, {r[0]: r[2]}))`},
	)
}

// deviceKey matches the keys of devices.
func deviceKey(rows []api.Annotation) string {
	return `r'^podvirt\.dev/(?:` + strings.Join(deviceKinds(rows), "|") + `)\.'`
}

// rowOf is the row that the key k belongs to: the key itself, or the beginning of a device's key.
const rowOf = `(k in variables.known ? k : k.substring(0, k.indexOf(".", 12) + 1))`

// isJSON says whether a row holds JSON, which has its own limits and may hold line breaks.
func isJSON(a api.Annotation) bool { return strings.HasPrefix(a.Value.Pattern, "(?s)") }

func oddValues() string {
	var json []string
	for _, a := range api.Annotations() {
		if isJSON(a) || a.Later {
			json = append(json, api.Prefix+a.Key)
		}
	}
	return fmt.Sprintf(`variables.keys.filter(k, !(k in %s)).map(k, `+
		`size(bytes(variables.a[k])) > %d ? k + ": " + %s + ": longer than %d bytes" : `+
		`variables.a[k].matches(r'[\x00-\x1f\x7f]') ? k + ": \"" + variables.a[k].findAll(r'[^\x00-\x1f\x7f"]+').join("?")
  + "\": control characters are not allowed" : "").filter(l, l != "")`,
		list(json), api.MaxText, quoted("variables.a[k]"), api.MaxText)
}

// laterKeys gives the lines about annotations of which this version honours nothing.
func laterKeys(rows []api.Annotation) string {
	var keys []string
	for _, a := range rows {
		if a.Later {
			keys = append(keys, api.Prefix+a.Key)
		}
	}
	return list(keys) + `.filter(k, k in variables.a).map(k, k + ": " + ` + quoted(printable("variables.a[k]")) + ` + ": "
  + ` + str(api.NotYet) + `)`
}

// printable takes control characters out.
func printable(x string) string { return x + `.findAll(r'[^\x00-\x1f\x7f]+').join("?")` }

func knownKeys(rows []api.Annotation) string {
	var keys []string
	for _, a := range rows {
		if a.Device() == "" {
			keys = append(keys, api.Prefix+a.Key)
		}
	}
	return list(keys)
}

func deviceKinds(rows []api.Annotation) []string {
	var kinds []string
	for _, a := range rows {
		if kind := a.Device(); kind != "" {
			kinds = append(kinds, kind)
		}
	}
	return kinds
}

// deviceNames gives the lines about names of devices.
func deviceNames(rows []api.Annotation) string {
	var lists []string
	for _, a := range rows {
		kind := a.Device()
		if kind == "" {
			continue
		}
		long, bad := api.DeviceNameMessages(kind)
		prefix := api.Prefix + kind + "."
		name := fmt.Sprintf("k.substring(%d)", len(prefix))
		lists = append(lists, fmt.Sprintf(
			`variables.keys.filter(k, k.startsWith(%s)).map(k, size(%s) > %d ? k + ": " + %s : !%s.matches(%s) ? k + ": " + %s : %s != "" ? k + ": "
  + %s : "").filter(l, l != "")`,
			str(prefix), name, api.MaxDeviceName(kind), str(long), name, re(api.DeviceNamePattern), str(bad),
			unsupported(a.Value, name), str(api.NotYet)))
	}
	return strings.Join(lists, " + ")
}

// byValue groups things that have one grammar, in the order of the table.
func byValue[T any](all []T, value func(T) api.Value) [][]T {
	var order []string
	groups := map[string][]T{}
	for _, x := range all {
		key := fmt.Sprintf("%#v", value(x))
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], x)
	}
	out := make([][]T, len(order))
	for i, key := range order {
		out[i] = groups[key]
	}
	return out
}

func keysOf(rows []api.Annotation) []string {
	keys := make([]string, len(rows))
	for i, a := range rows {
		keys[i] = api.Prefix + a.Key
	}
	return keys
}

// plain gives triples of key, value and what is wrong with it, of annotations that are one value.
func plain(rows []api.Annotation) []string {
	rows = slices.DeleteFunc(slices.Clone(rows), func(a api.Annotation) bool { return a.Kind != api.Plain })
	var triples []string
	for _, same := range byValue(rows, func(a api.Annotation) api.Value { return a.Value }) {
		triples = append(triples, fmt.Sprintf(`variables.read.filter(k, k in %s).map(k, [k, variables.a[k]]).map(r, [r[0], r[1], %s])`,
			list(keysOf(same)), wrong(same[0].Value, "r[1]")))
	}
	return triples
}

// mains gives such triples of the main words of options.
func mains(rows []api.Annotation) []string {
	rows = slices.DeleteFunc(slices.Clone(rows), func(a api.Annotation) bool { return !a.HasMain() || a.Later })
	var triples []string
	for _, same := range byValue(rows, func(a api.Annotation) api.Value { return a.Value }) {
		keys := list(keysOf(same))
		if !same[0].Value.List {
			triples = append(triples, fmt.Sprintf(`variables.main.transformList(k, m, k in %s, [k, m, %s])`, keys, wrong(same[0].Value, "m")))
			continue
		}
		triples = append(triples,
			fmt.Sprintf(`variables.main.transformList(k, m, k in %s, m.split("+").map(w, [k, w, %s])).flatten()`, keys, wrong(same[0].Value, "w")),
			fmt.Sprintf(`variables.main.transformList(k, m, k in %s, m.split("+").filter(w, m.split("+").filter(x, x == w).size() > 1).distinct()
  .map(w, [k, w, %s])).flatten()`,
				keys, str(api.ListedTwice)))
	}
	return triples
}

// told makes lines of triples of key, value and what is wrong with it, if anything.
func told(triples string) string {
	return "(" + triples + `).filter(t, t[2] != "").map(t, t[0] + ": " + ` + quoted(printable("t[1]")) + ` + ": " + t[2])`
}

// toldOption makes lines of key, option, value and what is wrong with it, if anything.
func toldOption(quadruples string) string {
	return "(" + quadruples + `).filter(t, t[3] != "").map(t, t[0] + ": " + t[1] + "=" + ` + shown("t[2]") + ` + ": " + t[3])`
}

// optionsOf gives the names of options by row.
func optionsOf(rows []api.Annotation) string {
	var entries []string
	for _, a := range rows {
		if a.Kind == api.Options && !a.Later {
			entries = append(entries, fmt.Sprintf("%s: %s", str(api.Prefix+strings.TrimSuffix(a.Key, "NAME")), list(optionNames(a))))
		}
	}
	return "{" + strings.Join(entries, ",\n") + "}"
}

// hasMain says whether the row of k begins with a main word.
func hasMain(rows []api.Annotation) string {
	rows = slices.DeleteFunc(slices.Clone(rows), func(a api.Annotation) bool { return !a.HasMain() })
	return "k in " + list(keysOf(rows))
}

// items divides the values of annotations with options: key to trimmed items. Those whose commas or quotes make no
// items are left out here and told in "empty".
func items() string {
	return fmt.Sprintf(`variables.a.transformMap(k, v, k in variables.read && %s in variables.optionsOf && (v.trim() == "" || v.matches(%s)),
  v.trim() == "" ? [] : v.findAll(r'%s').map(i, i.trim()))`, rowOf, re(api.ItemsPattern), api.ItemPattern)
}

func optionNames(a api.Annotation) []string {
	names := make([]string, len(a.Options))
	for i, o := range a.Options {
		names[i] = o.Name
	}
	return names
}

// records gives name, value as written and value without quotes of every item that is no main word.
func records() string {
	return `variables.items.transformMap(k, items, items.slice(k in variables.main ? 1 : 0, items.size()).map(i, i.contains("=")
  ? [i.substring(0, i.indexOf("=")), i.substring(i.indexOf("=") + 1), i.substring(i.indexOf("=") + 1).replace("\"", "")]
  : [i, "true", "true"]))`
}

// emptyOptions gives the lines about option strings that hold nothing, or do not divide into items.
func emptyOptions(rows []api.Annotation) string {
	var entries, sets []string
	for _, a := range rows {
		switch {
		case a.Kind == api.Set:
			sets = append(sets, api.Prefix+a.Key)
		case a.Kind != api.Options || a.Device() != "" || a.Later:
		case a.HasMain():
			entries = append(entries, fmt.Sprintf("%s: %s", str(api.Prefix+a.Key), str(a.Value.WrongMessage())))
		default:
			entries = append(entries, fmt.Sprintf("%s: %s", str(api.Prefix+a.Key), str(api.NoOptions(a))))
		}
	}
	return fmt.Sprintf(`{%s}.transformList(k, w, variables.items[?k].optMap(items, items.size() == 0).orValue(false), k + ": \""
  + variables.a[k] + "\": " + w)
  + variables.read.filter(k, (%s in variables.optionsOf || k in %s) && variables.a[k].trim() != "" && !variables.a[k].matches(%s)).map(k, k
  + ": " + %s + ": " + %s)`,
		strings.Join(entries, ",\n"), rowOf, list(sets), re(api.ItemsPattern), quoted("variables.a[k]"), str(api.EmptyItem))
}

// group is one variable with lines, small so that the API server's type checker has little to do at a time.
type group struct{ name, expression string }

// split spreads expressions over variables name1, name2, …, at most n each.
func split(name string, expressions []string, n int, finish func(joined string) string) []group {
	var groups []group
	for part := range slices.Chunk(expressions, n) {
		groups = append(groups, group{fmt.Sprintf("%s%d", name, len(groups)+1), finish(strings.Join(part, "\n+ "))})
	}
	return groups
}

func asIs(joined string) string { return joined }

// itemLines gives the lines about items that are no options, or not written as options are.
func itemLines() string {
	return fmt.Sprintf(`variables.first.transformList(k, rs, [variables.optionsOf[%[1]s]].map(names, rs.map(r,
    !(r[0] in names) ? %[2]s + ": " + (k.startsWith("podvirt.dev/nic.") && r[0].matches(r'^dhcp-[0-9]{1,15}$') ? "only 224 to 254"
  : "unknown option") :
    !r[1].matches(%[3]s) ? r[0] + "=" + %[4]s + ": " + %[5]s :
    r[2] == "" ? r[0] + "=: " + %[6]s : "").filter(l, l != "")
  + variables.twice[k].filter(n, n in names).map(n, n + ": " + %[7]s)).flatten().map(l, k + ": " + l)).flatten()`,
		rowOf, shown("r[0]"), re(api.OptionValuePattern), shown("r[2]"), str(api.BlankInValue), str(api.EmptyValue), str(api.ListedTwice))
}

// soundValues gives key, option, value as written, value without quotes, and "ROW OPTION" of every option that is
// written as options are.
func soundValues() string {
	return fmt.Sprintf(`variables.first.transformList(k, rs, rs.filter(r, r[1].matches(%s) && r[2] != "")
  .map(r, [k, r[0], r[1], r[2], %s.substring(12) + " " + r[0]])).flatten()`,
		re(api.OptionValuePattern), rowOf)
}

// placed is an option of one row.
type placed struct {
	name  string // "ROW OPTION"
	value api.Value
}

// optionValues gives key, option, value and what is wrong with it, of options that have one grammar.
func optionValues(rows []api.Annotation) []string {
	var all []placed
	for _, a := range rows {
		if a.Kind != api.Options || a.Later {
			continue
		}
		for _, o := range a.Options {
			all = append(all, placed{strings.TrimSuffix(a.Key, "NAME") + " " + o.Name, o.Value})
		}
	}
	var expressions []string
	for _, same := range byValue(all, func(p placed) api.Value { return p.value }) {
		names := make([]string, len(same))
		for i, p := range same {
			names[i] = p.name
		}
		v := same[0].value
		judged := fmt.Sprintf(`.map(r, [r[0], r[1], r[3], %s])`, wrong(v, "r[3]"))
		if v.List {
			judged = fmt.Sprintf(`.map(r, %s.map(p, [r[0], r[1], p, %s])).flatten()`, parts("r[2]"), wrong(v, "p"))
		}
		expressions = append(expressions, fmt.Sprintf(`variables.values.filter(r, r[4] in %s)%s`, list(names), judged))
	}
	return expressions
}

// setItems gives key, name, policy and what is wrong with the name, of name[=policy],... annotations.
func setItems(rows []api.Annotation) string {
	var lists []string
	for _, a := range rows {
		if a.Kind == api.Set {
			lists = append(lists, fmt.Sprintf(`[%[1]s].filter(k, k in variables.read && variables.a[k].trim() != ""
  && variables.a[k].matches(%[2]s)).map(k, variables.a[k].findAll(r'%[3]s').map(i, i.trim())
  .map(i, i.contains("=") ? [k, i.substring(0, i.indexOf("=")), i.substring(i.indexOf("=") + 1)] : [k, i, %[4]s])
  .map(r, [r[0], r[1], r[2], %[5]s])).flatten()`,
				str(api.Prefix+a.Key), re(api.ItemsPattern), api.ItemPattern, str(a.Policies[0]), wrong(a.Value, "r[1]")))
		}
	}
	return strings.Join(lists, " + ")
}

// set gives the lines about such annotations: wrong names, names listed twice, wrong policies.
func set(rows []api.Annotation) string {
	var policies, keys []string
	for _, a := range rows {
		if a.Kind == api.Set {
			policies, keys = a.Policies, append(keys, api.Prefix+a.Key)
		}
	}
	return fmt.Sprintf(`%[1]s.filter(k, k in variables.read && variables.a[k].trim() == "").map(k, k + ": " + %[2]s + ": " + %[3]s)
+ variables.featureItems.filter(r, r[3] != "").map(r, r[0] + ": " + %[4]s + ": " + r[3])
+ variables.featureItems.filter(r, r[3] == "" && variables.featureItems.filter(x, x[1] == r[1]).size() > 1).map(r, r[0] + ": " + r[1]
  + ": " + %[5]s).distinct()
+ lists.range(variables.featureItems.size()).filter(i, variables.featureItems.map(r, r[1]).indexOf(variables.featureItems[i][1]) == i)
  .map(i, variables.featureItems[i])
  .filter(r, r[3] == "" && !(r[2] in %[6]s)).map(r, r[0] + ": " + r[1] + "=" + %[7]s + ": " + %[8]s)`,
		list(keys), quoted("variables.a[k]"), str(api.EmptyItem), shown("r[1]"), str(api.ListedTwice), list(policies), shown("r[2]"), str(api.PolicyMessage))
}
