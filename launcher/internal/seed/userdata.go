package seed

import (
	"bytes"

	"go.yaml.in/yaml/v3"
)

// cloudConfigHeader begins user-data that cloud-init reads as its own configuration.
const cloudConfigHeader = "#cloud-config"

// Keys of cloud-config by which a user says which SSH keys there shall be.
const (
	keyUsers      = "users"
	keyAuthorized = "ssh_authorized_keys"
	keyImport     = "ssh_import_id"
)

// userData adds the SSH keys to user-data. Four cases:
//   - none is given: one is written;
//   - cloud-config without SSH keys: the keys are added to its users, the rest stays as it was written;
//   - cloud-config with SSH keys of its own: not touched (VM-155);
//   - anything else, such as a script: vendor-data carries the users, unless the user gave one.
func (b *builder) userData(keys []userKeys) {
	content, given := b.files[UserData]
	given = given && len(bytes.TrimSpace(content)) > 0
	isConfig := bytes.HasPrefix(bytes.TrimLeft(content, "\ufeff"), []byte(cloudConfigHeader))
	switch {
	case given && isConfig:
		b.cloudConfig(content, keys)
	case len(keys) == 0:
	case !given:
		b.files[UserData] = generated(keys)
	case b.files[VendorData] != nil:
		b.warn(UserData, "is no #cloud-config and vendor-data is given: the keys of /vm/ssh-keys are for the image's default user only")
	default:
		b.files[VendorData] = generated(keys)
	}
}

func (b *builder) cloudConfig(content []byte, keys []userKeys) {
	var document yaml.Node
	if err := yaml.Unmarshal(content, &document); err != nil {
		b.warn(UserData, "%s", yamlError(err))
		return
	}
	if len(keys) == 0 {
		return
	}
	if len(document.Content) == 0 { // nothing but comments
		b.files[UserData] = generated(keys)
		return
	}
	root := document.Content[0]
	if root.Kind != yaml.MappingNode {
		b.warn(UserData, "line %d: #cloud-config is not a mapping", root.Line)
		return
	}
	if definesKeys(root) {
		return
	}
	users := lookup(root, keyUsers)
	switch {
	case users == nil:
		users = &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{scalar("default")}} // or the image's user would vanish
		root.Content = append(root.Content, scalar(keyUsers), users)
	case users.Kind != yaml.SequenceNode:
		b.warn(UserData, "line %d: users is not a list; the keys of /vm/ssh-keys are not added", users.Line)
		return
	}
	for _, u := range keys {
		addKeys(users, u)
	}
	b.files[UserData] = withHeader(content, encode(root))
}

// withHeader keeps the first line as it was written, since comments may follow the header in it.
func withHeader(original, body []byte) []byte {
	if bytes.HasPrefix(body, []byte(cloudConfigHeader)) {
		return body
	}
	header, _, _ := bytes.Cut(original, []byte("\n"))
	return append(append(bytes.Clone(header), '\n'), body...)
}

// definesKeys reports whether the configuration names SSH keys anywhere.
func definesKeys(root *yaml.Node) bool {
	if lookup(root, keyAuthorized) != nil || lookup(root, keyImport) != nil {
		return true
	}
	users := lookup(root, keyUsers)
	if users == nil || users.Kind != yaml.SequenceNode {
		return false
	}
	for _, user := range users.Content {
		for _, key := range []string{keyAuthorized, "ssh-authorized-keys", keyImport, "ssh-import-id", "ssh_redirect_user"} {
			if lookup(user, key) != nil {
				return true
			}
		}
	}
	return false
}

// addKeys gives the keys to the user of that name in the list, or adds the user.
func addKeys(users *yaml.Node, u userKeys) {
	var list yaml.Node
	list.Kind = yaml.SequenceNode
	for _, key := range u.keys {
		list.Content = append(list.Content, &yaml.Node{Kind: yaml.ScalarNode, Value: key, Style: yaml.DoubleQuotedStyle})
	}
	for i, user := range users.Content {
		if user.Kind == yaml.ScalarNode && user.Value == u.user { // "- ops": only a name
			users.Content[i] = mapping("name", scalar(u.user), keyAuthorized, &list)
			return
		}
		if name := lookup(user, "name"); name != nil && name.Value == u.user {
			user.Content = append(user.Content, scalar(keyAuthorized), &list)
			return
		}
	}
	users.Content = append(users.Content, mapping("name", scalar(u.user), keyAuthorized, &list))
}

// generated is a cloud-config with nothing but users and keys.
func generated(keys []userKeys) []byte {
	users := &yaml.Node{Kind: yaml.SequenceNode, Content: []*yaml.Node{scalar("default")}}
	for _, u := range keys {
		addKeys(users, u)
	}
	return append([]byte(cloudConfigHeader+"\n"), encode(mapping(keyUsers, users))...)
}

func scalar(value string) *yaml.Node { return &yaml.Node{Kind: yaml.ScalarNode, Value: value} }

// mapping makes a mapping of alternating keys (string) and values (*yaml.Node).
func mapping(pairs ...any) *yaml.Node {
	m := &yaml.Node{Kind: yaml.MappingNode}
	for _, pair := range pairs {
		switch p := pair.(type) {
		case string:
			m.Content = append(m.Content, scalar(p))
		case *yaml.Node:
			m.Content = append(m.Content, p)
		}
	}
	return m
}

// lookup returns the value of a key in a mapping; nil where there is none.
func lookup(node *yaml.Node, key string) *yaml.Node {
	if node.Kind != yaml.MappingNode {
		return nil
	}
	for i := 0; i+1 < len(node.Content); i += 2 {
		if node.Content[i].Value == key {
			return node.Content[i+1]
		}
	}
	return nil
}
