// Package poolconfig reads the pools of podvirt-config, key storage.pools (storage.md 2.5): strictly, with all errors at once.
package poolconfig

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/util/validation"
	"sigs.k8s.io/yaml"

	"podvirt.dev/csi-hostpath/internal/words"
)

// Key is the key of podvirt-config that holds the list.
const Key = "storage.pools"

// Hard sizes that a pool may ask for.
const (
	HardSizeAuto    = "auto"
	HardSizeProject = "project"
	HardSizeImage   = "image"
	HardSizeNone    = "none"
)

// Defaults of a pool.
const (
	defaultReserve   = "5%"
	defaultCacheSize = "10%"
)

// Pool is one pool as the administrator described it. Exactly one of Path, Device and PVCTemplate is set.
type Pool struct {
	Name         string
	Path         string
	Device       string
	PVCTemplate  bool
	NodeSelector map[string]string
	Format       string
	Overcommit   float64
	Reserve      Amount
	HardSize     string
	AllowShared  bool
	CacheSize    Amount
	Default      bool
}

// Amount is a number of bytes or a share of a whole.
type Amount struct {
	Bytes   int64
	Percent float64
}

// Of returns the bytes that the amount is of a whole.
func (a Amount) Of(whole int64) int64 { return a.Bytes + int64(a.Percent/100*float64(whole)) }

// OnNode reports whether the pool is wanted on a node with these labels.
func (p Pool) OnNode(labels map[string]string) bool {
	for key, value := range p.NodeSelector {
		if have, ok := labels[key]; !ok || have != value {
			return false
		}
	}
	return true
}

// Parse reads the list. root is the directory below which paths must lie. The error joins one error per mistake, each
// of the form data.storage.pools: [1].pol: unknown key; nearest: pool.
func Parse(text, root string) ([]Pool, error) {
	var entries []map[string]any
	if err := yaml.Unmarshal([]byte(text), &entries); err != nil {
		return nil, fmt.Errorf("data.%s: not a YAML list of pools: %w", Key, err)
	}
	p := parser{root: root}
	pools := make([]Pool, 0, len(entries))
	names := map[string]bool{}
	for i, entry := range entries {
		pool := p.pool(i, entry)
		if names[pool.Name] {
			p.fail(i, ".name", fmt.Sprintf("%q is used twice", pool.Name))
		}
		names[pool.Name] = true
		pools = append(pools, pool)
	}
	if len(p.errs) > 0 {
		return nil, errors.Join(p.errs...)
	}
	return pools, nil
}

// ForNode returns the pools of one node; more than one default among them is an error.
func ForNode(pools []Pool, node string, labels map[string]string) ([]Pool, error) {
	var here []Pool
	var defaults []string
	for _, pool := range pools {
		if !pool.OnNode(labels) {
			continue
		}
		here = append(here, pool)
		if pool.Default {
			defaults = append(defaults, pool.Name)
		}
	}
	if len(defaults) > 1 {
		return nil, fmt.Errorf("data.%s: %s are both default on node %s", Key, strings.Join(defaults, " and "), node)
	}
	return here, nil
}

type parser struct {
	root string
	errs []error
}

func (p *parser) fail(index int, at, message string) {
	p.errs = append(p.errs, fmt.Errorf("data.%s: [%d]%s: %s", Key, index, at, message))
}

// pool reads one entry, key by key in a fixed order, so that messages come in a fixed order too.
func (p *parser) pool(i int, entry map[string]any) Pool {
	pool := Pool{Overcommit: 1, HardSize: HardSizeAuto, Format: "xfs"}
	readers := map[string]func(value any) string{
		"name":         func(v any) string { return readName(v, &pool.Name) },
		"path":         func(v any) string { return p.readPath(v, &pool.Path) },
		"device":       func(v any) string { return readDevice(v, &pool.Device) },
		"pvcTemplate":  func(v any) string { return readTemplate(v, &pool.PVCTemplate) },
		"nodeSelector": func(v any) string { return readLabels(v, &pool.NodeSelector) },
		"format":       func(v any) string { return readWord(v, &pool.Format, "xfs", "btrfs", "ext4", "none") },
		"overcommit":   func(v any) string { return readOvercommit(v, &pool.Overcommit) },
		"reserve":      func(v any) string { return readAmount(v, &pool.Reserve) },
		"hardSize": func(v any) string {
			return readWord(v, &pool.HardSize, HardSizeAuto, HardSizeProject, HardSizeImage, HardSizeNone)
		},
		"allowShared": func(v any) string { return readBool(v, &pool.AllowShared) },
		"cacheSize":   func(v any) string { return readAmount(v, &pool.CacheSize) },
		"default":     func(v any) string { return readBool(v, &pool.Default) },
	}
	known := slices.Sorted(maps.Keys(readers))
	for _, name := range [...]string{"reserve", "cacheSize"} {
		if _, ok := entry[name]; !ok {
			readers[name](map[string]string{"reserve": defaultReserve, "cacheSize": defaultCacheSize}[name])
		}
	}
	for _, key := range slices.Sorted(maps.Keys(entry)) {
		read, ok := readers[key]
		if !ok {
			p.fail(i, "."+key, "unknown key; nearest: "+words.Nearest(key, known))
			continue
		}
		if message := read(entry[key]); message != "" {
			p.fail(i, "."+key, message)
		}
	}
	if pool.Name == "" && entry["name"] == nil {
		p.fail(i, ".name", "required")
	}
	if count(entry, "path", "device", "pvcTemplate") != 1 {
		p.fail(i, "", "exactly one of path, device, pvcTemplate")
	}
	return pool
}

func count(entry map[string]any, keys ...string) int {
	n := 0
	for _, key := range keys {
		if _, ok := entry[key]; ok {
			n++
		}
	}
	return n
}

func readName(v any, to *string) string {
	name, ok := v.(string)
	if !ok || len(validation.IsDNS1123Label(name)) > 0 {
		return fmt.Sprintf("%q is not a DNS label", fmt.Sprint(v))
	}
	*to = name
	return ""
}

func (p *parser) readPath(v any, to *string) string {
	path, ok := v.(string)
	if !ok || !filepath.IsAbs(path) {
		return fmt.Sprintf("%q is not an absolute path", fmt.Sprint(v))
	}
	path = filepath.Clean(path)
	if rel, err := filepath.Rel(p.root, path); err != nil || rel == "." || rel == ".." || strings.HasPrefix(rel, "../") {
		return fmt.Sprintf("%q is not below %s", path, p.root)
	}
	*to = path
	return ""
}

func readDevice(v any, to *string) string {
	path, ok := v.(string)
	if !ok || !strings.HasPrefix(filepath.Clean(path), "/dev/") {
		return fmt.Sprintf("%q is not a path below /dev", fmt.Sprint(v))
	}
	*to = filepath.Clean(path)
	return ""
}

func readTemplate(v any, to *bool) string {
	if _, ok := v.(map[string]any); !ok {
		return "not a PersistentVolumeClaim spec"
	}
	*to = true
	return ""
}

func readLabels(v any, to *map[string]string) string {
	labels, ok := v.(map[string]any)
	if !ok {
		return "not a map of labels"
	}
	*to = map[string]string{}
	for key, value := range labels {
		(*to)[key] = fmt.Sprint(value)
	}
	return ""
}

func readWord(v any, to *string, allowed ...string) string {
	word := fmt.Sprint(v)
	if !slices.Contains(allowed, word) {
		return fmt.Sprintf("%q: %s", word, strings.Join(allowed, ", "))
	}
	*to = word
	return ""
}

func readOvercommit(v any, to *float64) string {
	number, ok := v.(float64)
	if text, isText := v.(string); isText {
		parsed, err := strconv.ParseFloat(text, 64)
		number, ok = parsed, err == nil
	}
	if !ok || number < 1 {
		return fmt.Sprintf("%v: 1.0 or more", v)
	}
	*to = number
	return ""
}

func readAmount(v any, to *Amount) string {
	text := fmt.Sprint(v)
	if percent, ok := strings.CutSuffix(text, "%"); ok {
		number, err := strconv.ParseFloat(percent, 64)
		if err != nil || number < 0 || number > 100 {
			return fmt.Sprintf("%q: a quantity or percent", text)
		}
		*to = Amount{Percent: number}
		return ""
	}
	quantity, err := resource.ParseQuantity(text)
	if err != nil || quantity.Sign() < 0 {
		return fmt.Sprintf("%q: a quantity or percent", text)
	}
	*to = Amount{Bytes: quantity.Value()}
	return ""
}

func readBool(v any, to *bool) string {
	value, ok := v.(bool)
	if !ok {
		return fmt.Sprintf("%q: true or false", fmt.Sprint(v))
	}
	*to = value
	return ""
}
