// Package keys knows the keys of a keyboard by name: those that launcher ctl keys presses (vm.md 2.7).
package keys

import (
	"fmt"
	"maps"
	"slices"
	"strings"

	"podvirt.dev/api"
)

// most is how many keys can be pressed at once; libvirt takes 16 (VIR_DOMAIN_SEND_KEY_MAX_KEYS).
const most = 16

// table gives Linux' key codes (include/uapi/linux/input-event-codes.h) of a keyboard with an American layout.
func table() map[string]uint {
	codes := map[string]uint{
		"esc": 1, "minus": 12, "equal": 13, "backspace": 14, "tab": 15, "enter": 28, "ctrl": 29, "semicolon": 39, "apostrophe": 40, "grave": 41,
		"shift": 42, "backslash": 43, "comma": 51, "dot": 52, "slash": 53, "alt": 56, "space": 57, "capslock": 58, "numlock": 69, "scrolllock": 70,
		"f11": 87, "f12": 88, "rightctrl": 97, "sysrq": 99, "print": 99, "rightalt": 100, "home": 102, "up": 103, "pageup": 104, "left": 105,
		"right": 106, "end": 107, "down": 108, "pagedown": 109, "insert": 110, "delete": 111, "pause": 119, "meta": 125, "menu": 127,
	}
	for row, first := range map[string]uint{"1234567890": 2, "qwertyuiop[]": 16, "asdfghjkl": 30, "zxcvbnm": 44} {
		for i, key := range row {
			codes[string(key)] = first + uint(i)
		}
	}
	for n := range uint(10) {
		codes[fmt.Sprintf("f%d", n+1)] = 59 + n
	}
	return codes
}

// Names are all names in order.
func Names() []string { return slices.Sorted(maps.Keys(table())) }

// Parse reads KEY+KEY..., such as ctrl+alt+delete, and returns the key codes that are pressed together. Capitals do not
// matter.
func Parse(text string) ([]uint, error) {
	codes := table()
	names := strings.Split(text, "+")
	if len(names) > most {
		return nil, fmt.Errorf("keys: %d keys; at most %d at once", len(names), most)
	}
	pressed := make([]uint, 0, len(names))
	for _, name := range names {
		code, ok := codes[strings.ToLower(name)]
		if !ok {
			advice := "one of " + strings.Join(Names(), ", ")
			if near := api.Nearest(name, Names()); near != "" {
				advice = "nearest: " + near
			}
			return nil, fmt.Errorf("keys: %q: no such key; %s", name, advice)
		}
		pressed = append(pressed, code)
	}
	return pressed, nil
}
