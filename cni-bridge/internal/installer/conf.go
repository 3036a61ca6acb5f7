package installer

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"podvirt.dev/api"
)

// Method is how the pod stage gets into the runtime's chain (network.md 2.5).
type Method string

// The methods.
const (
	MethodAuto   Method = "auto"
	MethodDropIn Method = "drop-in"
	MethodWrap   Method = "wrap"
	MethodEdit   Method = "edit"
	MethodOff    Method = "off"
)

// Names of what the installer writes.
const (
	dropInName = "90-podvirt.conf"
	multusName = "00-multus.conf"
	wrapName   = "00-multus-podvirt.conflist"
	origSuffix = ".podvirt-orig"
)

// Reasons why nothing can be installed at the moment.
var (
	// ErrNoNetwork says that no network is configured on this node yet.
	ErrNoNetwork = errors.New("no network configuration yet")
	// ErrCannotChain says that the network's configuration has to change first; the message says how.
	ErrCannotChain = errors.New("the pod stage cannot be chained")
)

// confList is what the installer reads of a configuration; everything else passes through untouched.
type confList struct {
	Name        string            `json:"name"`
	Type        string            `json:"type"`
	CNIVersion  string            `json:"cniVersion"`
	Plugins     []json.RawMessage `json:"plugins"`
	OnlyInlined any               `json:"loadOnlyInlinedPlugins"`
}

func (c confList) onlyInlined() bool {
	return c.OnlyInlined == true || strings.EqualFold(fmt.Sprint(c.OnlyInlined), "true")
}

func (c confList) hasUs() bool { return slices.ContainsFunc(c.Plugins, isUs) }

func isUs(plugin json.RawMessage) bool {
	var p struct{ Type, Mode string }
	return json.Unmarshal(plugin, &p) == nil && p.Type == api.CNIType && (p.Mode == "pod" || p.Mode == "")
}

// networkName is what libcni accepts, and what is safe as the name of a directory.
var networkName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]*$`)

// Plan is how the configuration directory shall look. Files that are not named stay as they are.
type Plan struct {
	Method Method
	Write  map[string][]byte // path below the directory → content
	Remove []string          // paths below the directory
}

// MakePlan looks at the directory and says what to write for the method. stage is the entry of the pod stage.
func MakePlan(dir string, method Method, stage []byte) (Plan, error) {
	plan := Plan{Write: map[string][]byte{}}
	ours, err := ourFiles(dir)
	if err != nil {
		return plan, err
	}
	if method == MethodOff {
		plan.Remove = ours
		return plan, nil
	}
	first, err := firstFile(dir)
	if err != nil { // a wrap alone would be taken for the network
		plan.Remove = slices.DeleteFunc(ours, func(name string) bool { return name != wrapName })
		return plan, err
	}
	list, data, err := readConf(dir, first)
	if err != nil {
		return plan, err // half written, perhaps: what is installed stays, and the next event brings us back
	}
	if plan.Method, err = choose(method, first, list); err != nil {
		plan.Remove = ours // it does not fit any more
		return plan, err
	}
	switch plan.Method {
	case MethodDropIn:
		plan.Write[filepath.Join(list.Name, dropInName)] = stage
	case MethodWrap:
		plan.Write[wrapName], err = wrap(list, data, stage)
	case MethodEdit:
		err = plan.edit(dir, first, data, stage)
	}
	if err != nil {
		return plan, err
	}
	for _, name := range ours {
		if _, kept := plan.Write[name]; !kept {
			plan.Remove = append(plan.Remove, name)
		}
	}
	return plan, nil
}

// choose is the table of network.md 2.5.
func choose(method Method, first string, list confList) (Method, error) {
	isList := strings.HasSuffix(first, ".conflist")
	switch {
	case method == MethodWrap || method == MethodAuto && first == multusName:
		switch {
		case first != multusName:
			return "", fmt.Errorf("%w: method wrap is for %s, the first file is %s", ErrCannotChain, multusName, first)
		case list.Type == "multus" && method == MethodAuto:
			return "", fmt.Errorf("%w: thin Multus takes the first file for its master and would call itself; set --cni-version=1.0.0 "+
				"(then it writes a list) or --multus-master-cni-file-name, with the latter network.install-method=wrap", ErrCannotChain)
		}
		return MethodWrap, nil
	case !isList:
		return "", fmt.Errorf("%w: %s is a single configuration; write it as a list (.conflist)", ErrCannotChain, first)
	case method == MethodEdit:
		return MethodEdit, nil
	case list.onlyInlined() && method == MethodDropIn:
		return "", fmt.Errorf("%w: %s says loadOnlyInlinedPlugins; use method edit", ErrCannotChain, first)
	case list.onlyInlined():
		return MethodEdit, nil
	case !networkName.MatchString(list.Name):
		return "", fmt.Errorf("%w: %s: %q is not the name of a network", ErrCannotChain, first, list.Name)
	}
	return MethodDropIn, nil
}

// firstFile is the one a runtime takes: the first by name of those with a known suffix. Ours does not count.
func firstFile(dir string) (string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("reading %s: %w", dir, err)
	}
	for _, entry := range entries {
		suffix := filepath.Ext(entry.Name())
		if !entry.IsDir() && entry.Name() != wrapName && slices.Contains([]string{".conf", ".conflist", ".json"}, suffix) {
			return entry.Name(), nil
		}
	}
	return "", fmt.Errorf("%w in %s", ErrNoNetwork, dir)
}

func readConf(dir, name string) (confList, []byte, error) {
	data, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return confList{}, nil, fmt.Errorf("reading the network configuration: %w", err)
	}
	var list confList
	if err := json.Unmarshal(data, &list); err != nil {
		return confList{}, nil, fmt.Errorf("%s: %w", name, err)
	}
	return list, data, nil
}

// ourFiles are the drop-ins of all networks, and the wrap.
func ourFiles(dir string) ([]string, error) {
	found, err := filepath.Glob(filepath.Join(dir, "*", dropInName))
	if err != nil {
		return nil, fmt.Errorf("looking for drop-ins: %w", err)
	}
	if _, err := os.Lstat(filepath.Join(dir, wrapName)); err == nil {
		found = append(found, filepath.Join(dir, wrapName))
	}
	for i, name := range found {
		if found[i], err = filepath.Rel(dir, name); err != nil {
			return nil, err
		}
	}
	return found, nil
}

// wrap puts a single configuration and the pod stage into a list of the same name and version. Versions before 1.0.0
// are kept: thick Multus writes 0.3.1.
func wrap(list confList, conf, stage []byte) ([]byte, error) {
	plugins := []json.RawMessage{conf, stage}
	if len(list.Plugins) > 0 {
		plugins = append(slices.Clone(list.Plugins), stage)
	}
	version := list.CNIVersion
	if version == "" {
		version = "0.3.1"
	}
	return encode(map[string]any{"cniVersion": version, "name": list.Name, "plugins": plugins})
}

// edit appends the pod stage to the list itself. The original is kept as it is, unless it holds an older entry of ours:
// then the kept one is still the original.
func (p *Plan) edit(dir, name string, data, stage []byte) error {
	edited, err := withStage(data, stage)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	p.Write[name] = edited
	list, _, err := readConf(dir, name)
	if err == nil && !list.hasUs() {
		p.Write[name+origSuffix] = data
	}
	return err
}

// withStage returns the list with the pod stage as its last entry, and without former ones; stage nil only takes them out.
func withStage(data, stage []byte) ([]byte, error) {
	var keys map[string]json.RawMessage
	if err := json.Unmarshal(data, &keys); err != nil {
		return nil, err
	}
	var plugins []json.RawMessage
	if err := json.Unmarshal(keys["plugins"], &plugins); err != nil {
		return nil, fmt.Errorf("plugins: %w", err)
	}
	plugins = slices.DeleteFunc(plugins, isUs)
	if stage != nil {
		plugins = append(plugins, stage)
	}
	raw, err := json.Marshal(plugins)
	if err != nil {
		return nil, err
	}
	keys["plugins"] = raw
	return encode(keys)
}

func encode(v any) ([]byte, error) {
	var out bytes.Buffer
	encoder := json.NewEncoder(&out)
	encoder.SetEscapeHTML(false)
	encoder.SetIndent("", "  ")
	if err := encoder.Encode(v); err != nil {
		return nil, fmt.Errorf("encoding the network configuration: %w", err)
	}
	return out.Bytes(), nil
}
