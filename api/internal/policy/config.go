package policy

import (
	"fmt"
	"regexp"
	"slices"
	"strings"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	"k8s.io/apimachinery/pkg/runtime"

	"podvirt.dev/api"
)

// validateConfig judges ConfigMap podvirt-config as api.ParseConfig does (operations.md 2.2).
func validateConfig() []runtime.Object {
	var plain, lists, keys, free []string
	for _, s := range api.Settings() {
		prefix, isFree := strings.CutSuffix(s.Key, "NAME")
		match := fmt.Sprintf(`k == %s`, str(s.Key))
		if isFree {
			free = append(free, regexp.QuoteMeta(prefix)+".+")
			match = fmt.Sprintf(`k.startsWith(%s) && size(k) > %d`, str(prefix), len(prefix))
		} else {
			keys = append(keys, s.Key)
		}
		entry := fmt.Sprintf(`variables.d.transformList(k, v, %s, [k, v, %s])`, match, wrong(s.Value, "v"))
		switch {
		case s.Lines:
			entry = fmt.Sprintf(`variables.d.transformList(k, v, %s, [k, "…", %s])`, match, unsupported(s.Value, "v"))
			plain = append(plain, entry)
		case s.Commas:
			lists = append(lists, fmt.Sprintf(`variables.d.transformList(k, v, %s, v.split(",").map(i, i.trim()).filter(i, v.trim() != "")
  .map(i, [k, v, i, %s])).flatten()`, match, wrong(s.Value, "i")))
		default:
			plain = append(plain, entry)
		}
	}
	control := `variables.d.transformList(k, v, v.matches(r'[\x00-\x1f\x7f]') && !k.matches(` + re(lineKeys()) + `), "data." + k
  + ": control characters are not allowed")`
	variables := []admissionv1.Variable{
		{Name: "d", Expression: `object.?data.orValue({}).transformMapEntry(k, v, {string(k): string(v)})`},
		{Name: "control", Expression: control},
		{Name: "unknown", Expression: fmt.Sprintf(`variables.d.transformList(k, v, !(k in %s) && !k.matches(%s), "data." + k
  + ": unknown key")`, list(keys), re(strings.Join(free, "|")))},
	}
	parts := []string{"variables.control", "variables.unknown"}
	lines := func(joined string) string {
		return "(" + joined + `).filter(t, t[2] != "").map(t, "data." + t[0] + ": \"" + ` + shown("t[1]") + ` + "\": " + t[2])`
	}
	itemLines := func(joined string) string {
		return "(" + joined + `).filter(t, t[3] != "").map(t, "data." + t[0] + ": \"" + ` + shown("t[1]") + ` + "\": " + (t[1] == t[2] ? t[3]
  : "\"" + ` + shown("t[2]") + ` + "\" is " + t[3]))`
	}
	for _, g := range slices.Concat(split("plain", plain, 8, lines), split("list", lists, 6, itemLines)) {
		variables = append(variables, admissionv1.Variable{Name: g.name, Expression: g.expression})
		parts = append(parts, "variables."+g.name)
	}
	variables = append(variables, admissionv1.Variable{Name: "errors", Expression: sorted(strings.Join(parts, " + "))})
	return validatingPolicy("podvirt-validate-config", admissionv1.ValidatingAdmissionPolicySpec{
		MatchConstraints: &admissionv1.MatchResources{ResourceRules: []admissionv1.NamedRuleWithOperations{{
			ResourceNames:      []string{api.ConfigName},
			RuleWithOperations: rule("", []admissionv1.OperationType{admissionv1.Create, admissionv1.Update}, "configmaps").RuleWithOperations,
		}}},
		MatchConditions: []admissionv1.MatchCondition{{Name: "ours", Expression: fmt.Sprintf(`request.namespace == %s`, str(api.SystemNamespace))}},
		Variables:       variables,
		Validations:     deny("errors"),
	}, nil)
}

// lineKeys matches the keys whose values may hold several lines.
func lineKeys() string {
	var patterns []string
	for _, s := range api.Settings() {
		if s.Lines {
			prefix, free := strings.CutSuffix(s.Key, "NAME")
			pattern := regexp.QuoteMeta(prefix)
			if free {
				pattern += ".+"
			}
			patterns = append(patterns, pattern)
		}
	}
	return strings.Join(patterns, "|")
}
