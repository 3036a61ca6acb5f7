package api

import (
	"fmt"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"k8s.io/apimachinery/pkg/api/resource"
)

// Form is the syntax of a value beside the words it may be.
type Form int

// The forms of vm.md 2.1. Their patterns are RE2 and unanchored, so that the policies in CEL read the same language.
const (
	FormWord     Form = iota // only the words
	FormInt                  // decimal, no sign
	FormQuantity             // Kubernetes quantity without sign
	FormDuration             // Go duration without sign
	FormText                 // anything without control characters
	FormPattern              // Value.Pattern
)

// Patterns of the forms. A duration is bounded so that no sum of its parts overflows.
const (
	intPattern      = `[0-9]{1,15}`
	QuantityPattern = `[0-9]{1,15}(?:\.[0-9]{1,9})?(?:[KMGTPE]i|[kMGTPE]|[eE][0-9])?`
	durationPattern = `(?:[0-9]{1,9}(?:\.[0-9]{1,9})?(?:ns|us|ms|s)|[0-9]{1,6}(?:\.[0-9]{1,9})?m|` +
		`[0-9]{1,5}(?:\.[0-9]{1,9})?h){1,4}`
)

// MaxText is the length of a value in bytes beyond which nothing is read (vm.md 2.1).
const MaxText = 4096

// NotYet is what a legal value is told that this version does not honour.
const NotYet = "not supported by this version"

// Value is the grammar of one value: a whole annotation, the main word of options, one option, one item of a list.
type Value struct {
	Words []string // words that are legal whatever the form says
	Form  Form
	// Pattern is the RE2 of [FormPattern].
	Pattern string
	// Min and Max bound integers, bytes of quantities, nanoseconds of durations and characters of texts;
	// Max 0: unbounded.
	Min, Max int64
	// Wrong is said of what is neither word nor form; "": the usual text of the form.
	Wrong string
	// Below and Above are said of what is out of bounds; "": the usual text, "MIN to MAX".
	Below, Above string
	// Example completes "not a quantity; example: ".
	Example string
	// List: several values joined with +; the rest holds for each.
	List bool
	// Empty: the empty value is legal and means the default.
	Empty bool
	// Later: legal, but this version honours only the words in Now. NotNow are single words that it does not honour.
	Later       bool
	Now, NotNow []string
}

func word(words string) Value { return Value{Words: strings.Fields(words)} }

func boolean() Value { return word("true false") }

func onOff() Value { return word("on off") }

func integer(low, high int64) Value {
	return Value{Form: FormInt, Min: low, Max: high, Example: "2"}
}

func quantity(example string) Value { return Value{Form: FormQuantity, Example: example} }

func duration(example string) Value { return Value{Form: FormDuration, Example: example} }

func text(longest int64) Value { return Value{Form: FormText, Max: longest} }

func pattern(re, wrong string) Value { return Value{Form: FormPattern, Pattern: re, Wrong: wrong} }

// or adds words beside the form.
func (v Value) or(words string) Value {
	v.Words = append(strings.Fields(words), v.Words...)
	return v
}

// list lets several values stand in one item, joined with +.
func (v Value) list() Value {
	v.List = true
	return v
}

// outside says what a value beyond either bound is told.
func (v Value) outside(message string) Value {
	v.Below, v.Above = message, message
	return v
}

// atLeast sets the lower bound and what is said below it.
func (v Value) atLeast(low int64, message string) Value {
	v.Min, v.Below = low, message
	return v
}

// atMost sets the upper bound and what is said above it.
func (v Value) atMost(high int64, message string) Value {
	v.Max, v.Above = high, message
	return v
}

// wrong says what a value is told that is neither word nor form.
func (v Value) wrong(message string) Value {
	v.Wrong = message
	return v
}

// later marks the value as legal but not honoured by this version, apart from the words given.
func (v Value) later(now string) Value {
	v.Later, v.Now = true, strings.Fields(now)
	return v
}

// notNow marks single words as not honoured by this version.
func (v Value) notNow(words string) Value {
	v.NotNow = strings.Fields(words)
	return v
}

// Syntax returns the RE2 that matches every value of the right form, in or out of bounds, unanchored.
func (v Value) Syntax() string {
	var alternatives []string
	for _, w := range v.Words {
		alternatives = append(alternatives, regexp.QuoteMeta(w))
	}
	switch v.Form {
	case FormWord:
	case FormInt:
		alternatives = append(alternatives, intPattern)
	case FormQuantity:
		alternatives = append(alternatives, QuantityPattern)
	case FormDuration:
		alternatives = append(alternatives, durationPattern)
	case FormText:
		alternatives = append(alternatives, `[^\x00-\x1f\x7f]*`)
	case FormPattern:
		alternatives = append(alternatives, v.Pattern)
	}
	if v.Empty {
		alternatives = append(alternatives, "")
	}
	return "(?:" + strings.Join(alternatives, "|") + ")"
}

// WrongMessage returns what a value is told that does not match [Value.Syntax].
func (v Value) WrongMessage() string {
	if v.Wrong != "" {
		return v.Wrong
	}
	switch v.Form {
	case FormInt:
		return "not a whole number; example: " + v.Example
	case FormQuantity:
		return "not a quantity; example: " + v.Example
	case FormDuration:
		return "not a duration; example: " + v.Example
	case FormText:
		return "control characters are not allowed"
	default:
		return "not one of " + strings.Join(v.Words, ", ")
	}
}

// BelowMessage returns what a value below Min is told.
func (v Value) BelowMessage() string {
	if v.Below != "" {
		return v.Below
	}
	if v.Max == 0 {
		return fmt.Sprintf("must be at least %d", v.Min)
	}
	return fmt.Sprintf("%d to %d", v.Min, v.Max)
}

// AboveMessage returns what a value above Max is told.
func (v Value) AboveMessage() string {
	switch {
	case v.Above != "":
		return v.Above
	case v.Form == FormText:
		return fmt.Sprintf("longer than %d characters", v.Max)
	case v.Min == 0:
		return fmt.Sprintf("at most %d", v.Max)
	}
	return fmt.Sprintf("%d to %d", v.Min, v.Max)
}

// Check returns what is wrong with one value, without any prefix and with the nearest legal word, or "".
func (v Value) Check(value string) string {
	if v.Empty && value == "" {
		return ""
	}
	if slices.Contains(v.Words, value) {
		return v.unsupported(value)
	}
	if !v.inForm(value) {
		return v.WrongMessage() + nearestSuffix(value, v.Words)
	}
	switch n := v.measure(value); {
	case n < v.Min:
		return v.BelowMessage()
	case v.Max != 0 && n > v.Max:
		return v.AboveMessage()
	}
	return v.unsupported(value)
}

func (v Value) unsupported(value string) string {
	if slices.Contains(v.NotNow, value) || v.Later && !slices.Contains(v.Now, value) {
		return NotYet
	}
	return ""
}

func (v Value) inForm(value string) bool {
	switch v.Form {
	case FormWord:
		return false
	case FormInt:
		return isDigits(value)
	case FormText:
		return !strings.ContainsFunc(value, isControl)
	case FormQuantity:
		return compiled(QuantityPattern).MatchString(value)
	case FormDuration:
		return compiled(durationPattern).MatchString(value)
	default:
		return compiled(v.Pattern).MatchString(value)
	}
}

// measure returns the figure that Min and Max bound.
func (v Value) measure(value string) int64 {
	switch v.Form {
	case FormInt:
		return toInt(value)
	case FormQuantity:
		return toBytes(value)
	case FormDuration:
		return int64(toDuration(value))
	case FormText:
		return int64(utf8.RuneCountInString(value))
	default:
		return v.Min
	}
}

func isControl(r rune) bool { return r < 0x20 || r == 0x7f }

func isDigits(value string) bool {
	if value == "" || len(value) > 15 {
		return false
	}
	for i := range len(value) {
		if value[i] < '0' || value[i] > '9' {
			return false
		}
	}
	return true
}

// The conversions below are for values that passed Check; what did not gives zero.

func toInt(value string) int64 {
	n, err := strconv.ParseInt(value, 10, 64)
	if err != nil {
		return 0
	}
	return n
}

// toBytes converts by way of a float, as the policies in CEL have to; it is exact below 2^53.
func toBytes(value string) int64 {
	q, err := resource.ParseQuantity(value)
	if err != nil {
		return 0
	}
	return int64(min(q.AsApproximateFloat64(), 1<<62))
}

func toDuration(value string) time.Duration {
	d, err := time.ParseDuration(value)
	if err != nil {
		return 0
	}
	return d
}

// toMiB rounds up to whole MiB (VM-040).
func toMiB(bytes int64) MiB { return MiB((bytes + 1<<20 - 1) >> 20) }
