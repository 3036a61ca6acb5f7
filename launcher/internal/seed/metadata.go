package seed

import (
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// metaData writes meta-data, or adds to the user's what it leaves out: cloud-init needs an instance-id that does not
// change over restarts, or it would run its per-instance modules again.
func (b *builder) metaData(input Input, keys []userKeys) {
	wanted := []struct {
		key   string
		value any
	}{
		{"instance-id", input.InstanceID}, {"local-hostname", input.Hostname}, {"public-keys", allKeys(keys)},
	}
	content, given := b.files[MetaData]
	var meta map[string]any
	if given {
		if err := yaml.Unmarshal(content, &meta); err != nil {
			b.warn(MetaData, "%s; left as it is", yamlError(err))
			return
		}
	}
	var missing yaml.Node
	missing.Kind = yaml.MappingNode
	for _, w := range wanted {
		if _, has := meta[w.key]; has || isEmpty(w.value) {
			continue
		}
		var value yaml.Node
		if err := value.Encode(w.value); err != nil {
			b.warn(MetaData, "%s: %v", w.key, err)
			continue
		}
		missing.Content = append(missing.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: w.key}, &value)
	}
	if len(missing.Content) == 0 {
		return
	}
	if len(meta) > 0 {
		b.appendMeta(content, &missing)
		return
	}
	b.files[MetaData] = encode(&missing)
}

// appendMeta adds keys to the user's mapping, comments and order of which stay.
func (b *builder) appendMeta(content []byte, missing *yaml.Node) {
	var document yaml.Node
	if err := yaml.Unmarshal(content, &document); err != nil || document.Content[0].Kind != yaml.MappingNode {
		b.warn(MetaData, "no mapping; left as it is")
		return
	}
	root := document.Content[0]
	root.Content = append(root.Content, missing.Content...)
	b.files[MetaData] = encode(root)
}

func isEmpty(value any) bool {
	switch v := value.(type) {
	case string:
		return v == ""
	case []string:
		return len(v) == 0
	}
	return false
}

// encode writes a node that this package made or read: it can be written.
func encode(node *yaml.Node) []byte {
	out, err := yaml.Marshal(node)
	if err != nil {
		return fmt.Appendf(nil, "# %v\n", err)
	}
	return out
}

// yamlError says where a YAML text is wrong. The parser's own words may quote the text, which is secret.
func yamlError(err error) string {
	line, _, found := strings.Cut(strings.TrimPrefix(err.Error(), "yaml: "), ":")
	if _, number, ok := strings.Cut(line, "line "); found && ok {
		if _, err := strconv.Atoi(number); err == nil {
			return "line " + number + ": not valid YAML"
		}
	}
	return "not valid YAML"
}
