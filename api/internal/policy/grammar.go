package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"

	"podvirt.dev/api"
)

// grammar returns the variables that judge each annotation by itself. They read variables.a, the annotations of the
// VM Pod or template, and end in "grammar", a list of whole lines.
func grammar() []admissionv1.Variable {
	rows := api.Annotations()
	variables := []admissionv1.Variable{
		{Name: "keys", Expression: `variables.a.filter(k, k.startsWith("podvirt.dev/"))`},
		{Name: "odd", Expression: oddValues()},
		{Name: "known", Expression: knownKeys(rows)},
		{Name: "unknown", Expression: `variables.keys.filter(k, !(k in variables.known) && !k.matches(r'^podvirt\.dev/(?:` +
			strings.Join(deviceKinds(rows), "|") + `)\.')).map(k, k + ": unknown annotation")`},
		{Name: "names", Expression: deviceNames(rows)},
		{Name: "read", Expression: `variables.keys.filter(k, !variables.odd.exists(l, l.startsWith(k + ": ")) && !variables.names.exists(l, l.startsWith(k + ": ")))`},
		{Name: "items", Expression: items(rows)},
		{Name: "main", Expression: mainWords(rows)},
		{Name: "records", Expression: records()},
		{Name: "twice", Expression: `variables.records.transformMap(k, rs, rs.map(r, r[0]).filter(n, rs.filter(r, r[0] == n).size() > 1).distinct())`},
		{Name: "first", Expression: `variables.records.transformMap(k, rs, lists.range(rs.size()).filter(i, rs.map(r, r[0]).indexOf(rs[i][0]) == i).map(i, rs[i]))`},
		{Name: "empty", Expression: emptyOptions(rows)},
	}
	parts := []string{"variables.odd", "variables.unknown", "variables.names", "variables.empty"}
	for _, g := range slices.Concat(split("plain", plain(rows), 6, told), optionGroups(rows)) {
		variables = append(variables, admissionv1.Variable{Name: g.name, Expression: g.expression})
		parts = append(parts, "variables."+g.name)
	}
	variables = append(variables, admissionv1.Variable{Name: "features", Expression: set(rows)})
	parts = append(parts, "variables.features")
	return append(variables,
		admissionv1.Variable{Name: "grammar", Expression: strings.Join(parts, " + ")},
		admissionv1.Variable{Name: "good", Expression: `variables.read.filter(k, !variables.grammar.exists(l, l.startsWith(k + ": ")))`},
		admissionv1.Variable{Name: "word", Expression: `variables.a.transformMap(k, v, k in variables.good, v)`},
		admissionv1.Variable{Name: "mainWord", Expression: `variables.main.transformMap(k, w, k in variables.good, w)`},
		admissionv1.Variable{Name: "o", Expression: `variables.first.transformMap(k, rs, k in variables.good, rs.transformMapEntry(i, r, {r[0]: r[2]}))`},
	)
}

// isJSON says whether a row holds JSON, which has its own limits and may hold line breaks.
func isJSON(a api.Annotation) bool { return strings.HasPrefix(a.Value.Pattern, "(?s)") }

func oddValues() string {
	var json []string
	for _, a := range api.Annotations() {
		if isJSON(a) {
			json = append(json, api.Prefix+a.Key)
		}
	}
	return fmt.Sprintf(`variables.keys.filter(k, !(k in %s)).map(k, `+
		`size(bytes(variables.a[k])) > %d ? k + ": " + %s + ": longer than %d bytes" : `+
		`variables.a[k].matches(r'[\x00-\x1f\x7f]') ? k + ": \"" + variables.a[k].findAll(r'[^\x00-\x1f\x7f"]+').join("?") + "\": control characters are not allowed" : "").filter(l, l != "")`,
		list(json), api.MaxText, quoted("variables.a[k]"), api.MaxText)
}

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
			`variables.keys.filter(k, k.startsWith(%s)).map(k, size(%s) > %d ? k + ": " + %s : !%s.matches(%s) ? k + ": " + %s : %s != "" ? k + ": " + %s : "").filter(l, l != "")`,
			str(prefix), name, api.MaxDeviceName(kind), str(long), name, re(api.DeviceNamePattern), str(bad),
			unsupported(a.Value, name), str(api.NotYet)))
	}
	return strings.Join(lists, " + ")
}

// plain gives the lines about annotations that are one value.
func plain(rows []api.Annotation) []string {
	var lines []string
	for _, a := range rows {
		if a.Kind == api.Plain {
			key := str(api.Prefix + a.Key)
			lines = append(lines, fmt.Sprintf(`[%[1]s].filter(k, k in variables.read).map(k, variables.a[k]).map(v, [%[1]s, v, %[2]s])`, key, wrong(a.Value, "v")))
		}
	}
	return lines
}

// told makes lines of triples of key, value and what is wrong with it, if anything.
func told(triples string) string {
	return "(" + triples + `).filter(t, t[2] != "").map(t, t[0] + ": " + ` + quoted(`t[1].findAll(r'[^\x00-\x1f\x7f]+').join("?")`) + ` + ": " + t[2])`
}

// items divides the values of annotations with options: key to trimmed items. Those whose commas or quotes make no
// items are left out here and told in "empty".
func items(rows []api.Annotation) string {
	return fmt.Sprintf(`variables.a.transformMap(k, v, k in variables.read && (k in %s || k.matches(r'^podvirt\.dev/(?:%s)\.')) && (v.trim() == "" || v.matches(%s)),
  v.trim() == "" ? [] : v.findAll(r'%s').map(i, i.trim()))`,
		list(optionKeys(rows, api.Options)), strings.Join(deviceKinds(rows), "|"), re(api.ItemsPattern), api.ItemPattern)
}

func optionKeys(rows []api.Annotation, kind api.Kind) []string {
	var keys []string
	for _, a := range rows {
		if a.Kind == kind && a.Device() == "" {
			keys = append(keys, api.Prefix+a.Key)
		}
	}
	return keys
}

// mainWords gives the first item of each value that begins with a main word: key to word.
func mainWords(rows []api.Annotation) string {
	var entries []string
	for _, a := range rows {
		if a.HasMain() {
			entries = append(entries, fmt.Sprintf("%s: %s", str(api.Prefix+a.Key), list(optionNames(a))))
		}
	}
	return "{" + strings.Join(entries, ", ") + `}.transformMap(k, names, k in variables.items && variables.items[k].size() > 0 && !variables.items[k][0].contains("=") && !(variables.items[k][0] in names), variables.items[k][0])`
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
	var entries []string
	for _, a := range rows {
		switch {
		case a.Kind != api.Options || a.Device() != "":
		case a.HasMain():
			entries = append(entries, fmt.Sprintf("%s: %s", str(api.Prefix+a.Key), wrong(a.Value, `""`)))
		default:
			entries = append(entries, fmt.Sprintf("%s: %s", str(api.Prefix+a.Key), str(api.NoOptions(a))))
		}
	}
	return "{" + strings.Join(entries, ", ") + `}.transformList(k, w, k in variables.items && variables.items[k].size() == 0, k + ": \"" + variables.a[k] + "\": " + w)
  + variables.read.filter(k, (k in ` + list(append(optionKeys(rows, api.Options), optionKeys(rows, api.Set)...)) +
		` || k.matches(r'^podvirt\.dev/(?:` + strings.Join(deviceKinds(rows), "|") + `)\.')) && variables.a[k].trim() != "" && !variables.a[k].matches(` + re(api.ItemsPattern) + `))
    .map(k, k + ": " + ` + quoted("variables.a[k]") + ` + ": " + ` + str(api.EmptyItem) + `)`
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

// optionGroups gives the lines about options: those of whole-VM rows, then those of each kind of device.
func optionGroups(rows []api.Annotation) []group {
	var whole []string
	var groups []group
	for _, a := range rows {
		if a.Kind != api.Options {
			continue
		}
		kind := a.Device()
		keys := fmt.Sprintf(`[%s].filter(k, k in variables.first)`, str(api.Prefix+a.Key))
		if kind != "" {
			keys = fmt.Sprintf(`variables.first.transformList(k, rs, k.startsWith(%s), k)`, str(api.Prefix+kind+"."))
		}
		var lines []string
		if a.HasMain() {
			lines = append(lines, keys+".map(k, "+mainLines(a)+").flatten()")
		}
		lines = append(lines, keys+".map(k, "+itemLines(a)+").flatten()")
		for _, same := range sameValue(a.Options) {
			lines = append(lines, keys+".map(k, "+valueLines(same)+").flatten()")
		}
		if kind == "" {
			whole = append(whole, lines...)
			continue
		}
		groups = append(groups, split(kind+"Options", lines, 4, asIs)...)
	}
	return append(split("options", whole, 4, asIs), groups...)
}

// mainLines gives the lines about the main word of the annotation k.
func mainLines(a api.Annotation) string {
	words := "[m]"
	if a.Value.List {
		words = `m.split("+")`
	}
	lines := fmt.Sprintf(`%[1]s.map(w, [w, %[2]s]).filter(p, p[1] != "").map(p, k + ": " + %[3]s + ": " + p[1])`,
		words, wrong(a.Value, "w"), quoted("p[0]"))
	if a.Value.List {
		lines += fmt.Sprintf(` + %[1]s.filter(w, %[1]s.filter(x, x == w).size() > 1).distinct().map(w, k + ": " + %[2]s + ": " + %[3]s)`,
			words, quoted("w"), str(api.ListedTwice))
	}
	return `variables.main[?k].optMap(m, ` + lines + `).orValue([])`
}

// itemLines gives the lines about items of the annotation k that are no options, or not as options are written.
func itemLines(a api.Annotation) string {
	names := re(words(optionNames(a)))
	return fmt.Sprintf(`(variables.first[k].map(r,
    !r[0].matches(%[1]s) ? %[2]s + ": " + %[3]s :
    !r[1].matches(%[4]s) ? r[0] + "=" + %[5]s + ": " + %[6]s :
    r[2] == "" ? r[0] + "=: " + %[7]s : "").filter(l, l != "")
  + variables.twice[k].filter(n, n.matches(%[1]s)).map(n, n + ": " + %[8]s)).map(l, k + ": " + l)`,
		names, shown("r[0]"), unknownOption(a), re(api.OptionValuePattern), shown("r[2]"), str(api.BlankInValue), str(api.EmptyValue), str(api.ListedTwice))
}

// valueLines gives the lines about the values of options of the annotation k that have one grammar.
func valueLines(same options) string {
	v := same[0].Value
	triples := fmt.Sprintf(`.map(r, [r[0], r[2], %s])`, wrong(v, "r[2]"))
	if v.List {
		triples = fmt.Sprintf(`.map(r, %s.map(p, [r[0], p, %s])).flatten()`, parts("r[1]"), wrong(v, "p"))
	}
	return fmt.Sprintf(`variables.first[k].filter(r, r[0].matches(%s) && r[1].matches(%s) && r[2] != "")%s.filter(t, t[2] != "").map(t, k + ": " + t[0] + "=" + %s + ": " + t[2])`,
		re(words(same.names())), re(api.OptionValuePattern), triples, shown("t[1]"))
}

// words is a pattern of words.
func words(words []string) string {
	quoted := make([]string, len(words))
	for i, w := range words {
		quoted[i] = regexp.QuoteMeta(w)
	}
	return strings.Join(quoted, "|")
}

func unknownOption(a api.Annotation) string {
	if a.Device() == "nic" {
		return `(r[0].matches(r'^dhcp-[0-9]{1,15}$') ? "only 224 to 254" : "unknown option")`
	}
	return `"unknown option"`
}

// options are options with one grammar.
type options []api.Option

func (o options) names() []string {
	names := make([]string, len(o))
	for i := range o {
		names[i] = o[i].Name
	}
	return names
}

// sameValue groups options by their grammar, in the order of the table.
func sameValue(all []api.Option) []options {
	var order []string
	groups := map[string]options{}
	for _, o := range all {
		key := fmt.Sprintf("%#v", o.Value)
		if groups[key] == nil {
			order = append(order, key)
		}
		groups[key] = append(groups[key], o)
	}
	out := make([]options, len(order))
	for i, key := range order {
		out[i] = groups[key]
	}
	return out
}

// set gives the lines about name[=policy],... annotations.
func set(rows []api.Annotation) string {
	var lists []string
	for _, a := range rows {
		if a.Kind != api.Set {
			continue
		}
		key := str(api.Prefix + a.Key)
		item := `(i.contains("=") ? [i.substring(0, i.indexOf("=")), i.substring(i.indexOf("=") + 1)] : [i, ` + str(a.Policies[0]) + `])`
		lists = append(lists, fmt.Sprintf(`[%[1]s].filter(k, k in variables.read).map(k,
  variables.a[k].trim() == "" ? [k + ": " + %[2]s + ": " + %[3]s] :
  !variables.a[k].matches(%[4]s) ? [] :
  [variables.a[k].findAll(r'%[5]s').map(i, i.trim()).map(i, %[6]s)].map(rs,
    rs.map(r, [r, [%[7]s]]).filter(p, p[1][0] != "").map(p, %[8]s + ": " + p[1][0])
    + rs.map(r, r[0]).filter(n, %[9]s == "" && rs.filter(r, r[0] == n).size() > 1).distinct().map(n, n + ": " + %[10]s)
    + lists.range(rs.size()).filter(i, rs.map(r, r[0]).indexOf(rs[i][0]) == i).map(i, rs[i]).filter(r, %[7]s == "" && !(r[1] in %[11]s)).map(r, r[0] + "=" + %[12]s + ": " + %[13]s)
  ).flatten().map(l, k + ": " + l)).flatten()`,
			key, quoted("variables.a[k]"), str(api.EmptyItem), re(api.ItemsPattern), api.ItemPattern, item, wrong(a.Value, "r[0]"),
			shown("p[0][0]"), wrong(a.Value, "n"), str(api.ListedTwice), list(a.Policies), shown("r[1]"), str(api.PolicyMessage)))
	}
	return strings.Join(lists, " + ")
}
