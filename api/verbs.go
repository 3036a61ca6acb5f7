package api

// Verb is one verb of launcher ctl and the right that policy podvirt-exec asks for: verb create on
// virtualmachines/RIGHT in API group podvirt.dev (vm.md 2.7).
type Verb struct {
	Verb  string
	Right string
}

// Verbs returns the verbs of launcher ctl; "agent" verbs with the word after it.
func Verbs() []Verb {
	var verbs []Verb
	for _, group := range []struct {
		right string
		verbs []string
	}{
		{"view", []string{"status", "stats", "log", "xml", "probe"}},
		{"pause", []string{"pause", "resume"}},
		{"power", []string{"shutdown", "poweroff", "reboot", "reset", "restart", "start", "nmi"}},
		{"console", []string{"console"}},
		{"vnc", []string{"vnc", "screenshot", "keys", "type"}},
		{"forward", []string{"forward"}},
		{"guest", []string{"agent ping", "agent os", "agent fs", "agent users", "agent nics", "agent time", "agent load"}},
		{"guest-exec", []string{"agent exec", "agent file", "agent password"}},
		{"freeze", []string{"freeze", "thaw", "trim"}},
		{"device", []string{"attach", "detach", "update", "tray", "usb"}},
		{"dump", []string{"dump", "hibernate"}},
		{"migrate", []string{"migrate"}},
	} {
		for _, verb := range group.verbs {
			verbs = append(verbs, Verb{Verb: verb, Right: group.right})
		}
	}
	return verbs
}
