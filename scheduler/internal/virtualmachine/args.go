package virtualmachine

import (
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"

	"podvirt.dev/api"
)

const (
	argsVersion = "scheduler.podvirt.dev/v1"
	argsKind    = "VirtualMachineArgs"
)

// Args are the arguments of the plugin, kind VirtualMachineArgs of scheduler.podvirt.dev/v1 (scheduling.md 2.6).
type Args struct {
	// ConfigMap is namespace/name of the object that holds the policy keys; a missing object means defaults.
	ConfigMap string
	// RequireFacts false accepts a node without facts for VMs that ask for nothing special.
	RequireFacts bool
	// Score holds the weights of the parts of the score, 0 to 10.
	Score map[string]int
	// AvoidAfterRefusal is how long a node is avoided for a shape that its kubelet refused; 0: never.
	AvoidAfterRefusal time.Duration
	// ProgressInterval is the shortest time between two progress messages of one waiting Pod.
	ProgressInterval time.Duration
	// Networks filters by the resources that networks of a VM name; nil: where their API is served.
	Networks *bool
}

const (
	maxWeight   = 10
	maxAvoid    = time.Hour
	minProgress = time.Second

	scoreCPUFit         = "cpuFit"
	scoreCellPacking    = "cellPacking"
	scoreKeepLargePages = "keepLargePages"
)

func defaultArgs() Args {
	return Args{
		ConfigMap:    "podvirt-system/podvirt-config",
		RequireFacts: true,
		Score: map[string]int{
			scoreCPUFit: 2, scoreCellPacking: 3, scoreKeepLargePages: 2, "headRoom": 2, "growth": 1, "sourceLocality": 3,
		},
		AvoidAfterRefusal: 5 * time.Minute,
		ProgressInterval:  10 * time.Second,
	}
}

func (a Args) configMap() types.NamespacedName {
	namespace, name, _ := strings.Cut(a.ConfigMap, "/")
	return types.NamespacedName{Namespace: namespace, Name: name}
}

// decodeArgs reads the arguments strictly; the error lists every mistake, one per line.
func decodeArgs(obj runtime.Object) (Args, error) {
	args := defaultArgs()
	if obj == nil {
		return args, nil
	}
	unknown, ok := obj.(*runtime.Unknown)
	if !ok {
		return args, fmt.Errorf("want arguments of kind %s, got %T", argsKind, obj)
	}
	if len(unknown.Raw) == 0 {
		return args, nil
	}
	var fields map[string]json.RawMessage
	if err := json.Unmarshal(unknown.Raw, &fields); err != nil {
		return args, err
	}
	decoder := argsDecoder{args: &args}
	for _, name := range slices.Sorted(maps.Keys(fields)) {
		decoder.field(name, fields[name])
	}
	if len(decoder.problems) > 0 {
		return args, fmt.Errorf("%s", strings.Join(decoder.problems, "\n"))
	}
	return args, nil
}

// argsDecoder fills Args and collects every mistake.
type argsDecoder struct {
	args     *Args
	problems []string
}

func (d *argsDecoder) refuse(name, format string, values ...any) {
	d.problems = append(d.problems, name+": "+fmt.Sprintf(format, values...))
}

func (d *argsDecoder) field(name string, raw json.RawMessage) {
	switch name {
	case "apiVersion":
		d.word(name, raw, argsVersion)
	case "kind":
		d.word(name, raw, argsKind)
	case "configMap":
		d.configMap(name, raw)
	case "requireFacts":
		d.boolean(name, raw, &d.args.RequireFacts)
	case "networks":
		d.args.Networks = new(bool)
		d.boolean(name, raw, d.args.Networks)
	case "avoidAfterRefusal":
		d.duration(name, raw, &d.args.AvoidAfterRefusal, 0, maxAvoid)
	case "progressInterval":
		d.duration(name, raw, &d.args.ProgressInterval, minProgress, maxAvoid)
	case "score":
		d.score(raw)
	default:
		known := []string{"configMap", "requireFacts", "score", "avoidAfterRefusal", "progressInterval", "networks"}
		d.refuse(name, "unknown field%s", nearest(name, known))
	}
}

func (d *argsDecoder) word(name string, raw json.RawMessage, want string) {
	var got string
	if err := json.Unmarshal(raw, &got); err != nil || got != want {
		d.refuse(name, "%s: want %q", raw, want)
	}
}

func (d *argsDecoder) configMap(name string, raw json.RawMessage) {
	err := json.Unmarshal(raw, &d.args.ConfigMap)
	namespace, object, _ := strings.Cut(d.args.ConfigMap, "/")
	if err != nil || namespace == "" || object == "" || strings.Contains(object, "/") {
		d.refuse(name, "%s: want namespace/name", raw)
	}
}

func (d *argsDecoder) boolean(name string, raw json.RawMessage, to *bool) {
	if err := json.Unmarshal(raw, to); err != nil {
		d.refuse(name, "%s: not true or false", raw)
	}
}

func (d *argsDecoder) duration(name string, raw json.RawMessage, to *time.Duration, low, high time.Duration) {
	var text string
	err := json.Unmarshal(raw, &text)
	if err == nil {
		*to, err = time.ParseDuration(text)
	}
	if err != nil || *to < low || *to > high {
		d.refuse(name, "%s: want a duration from %s to %s", raw, low, high)
	}
}

func (d *argsDecoder) score(raw json.RawMessage) {
	var weights map[string]json.RawMessage
	if err := json.Unmarshal(raw, &weights); err != nil {
		d.refuse("score", "want an object of weights")
		return
	}
	known := slices.Sorted(maps.Keys(d.args.Score))
	for _, name := range slices.Sorted(maps.Keys(weights)) {
		if !slices.Contains(known, name) {
			d.refuse("score."+name, "unknown field%s", nearest(name, known))
			continue
		}
		var weight int
		if err := json.Unmarshal(weights[name], &weight); err != nil || weight < 0 || weight > maxWeight {
			d.refuse("score."+name, "%s: 0 to %d", weights[name], maxWeight)
			continue
		}
		d.args.Score[name] = weight
	}
}

// nearest returns "; nearest: WORD", or "".
func nearest(word string, known []string) string {
	if found := api.Nearest(word, known); found != "" {
		return "; nearest: " + found
	}
	return ""
}
