package importer

import (
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"errors"
	"io/fs"
	"maps"
	"os"
	"slices"
	"strings"

	"podvirt.dev/api"
)

// systemRoots are the CAs of the image that the driver runs in.
const systemRoots = "/etc/ssl/certs/ca-certificates.crt"

// Objects are what the annotations of a claim name.
type Objects struct {
	CA     map[string]string // data of the ConfigMap; nil: none is named
	Shared map[string]string // data of storage.import.ca
	Secret map[string][]byte // data of the Secret; nil: none is named
	// Headers are the values of the Secrets that hold headers, "Name: value" each.
	Headers []string
}

// Headers reads a Secret of import-headers-secret; wrong says what is none.
func Headers(data map[string][]byte) (lines []string, wrong string) {
	for _, key := range slices.Sorted(maps.Keys(data)) {
		found, bad := api.ParseHeaders(strings.TrimSpace(string(data[key])))
		if bad != "" || len(found) != 1 {
			return nil, "key " + key + ` of the Secret is not "Name: value"`
		}
		lines = append(lines, found...)
	}
	return lines, ""
}

// Check says what is wrong with the objects, in the words of storage.md 2.1; "" when nothing is.
func (o Objects) Check() string {
	for _, key := range slices.Sorted(maps.Keys(o.CA)) {
		if block, _ := pem.Decode([]byte(o.CA[key])); block == nil || block.Type != "CERTIFICATE" {
			return "key " + key + " holds no certificate"
		}
	}
	if o.CA != nil && len(o.CA) == 0 {
		return "the ConfigMap holds no certificate"
	}
	if o.Secret == nil {
		return ""
	}
	has := func(keys ...string) bool {
		return !slices.ContainsFunc(keys, func(key string) bool { return len(o.Secret[key]) == 0 })
	}
	if has("token") || has("username", "password") || has("tls.crt", "tls.key") || has(dockerConfig) ||
		has(s3Access, s3Secret) || has(googleKey) {
		return ""
	}
	return "the Secret needs token, or username and password, or tls.crt and tls.key, or " + dockerConfig + ", or accessKeyId and secretKey, or " + googleKey
}

// fill adds CAs and credentials to a job and encodes it.
func (o Objects) fill(j *job) ([]byte, error) {
	roots, err := os.ReadFile(systemRoots)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	j.Roots = roots
	for _, more := range []map[string]string{o.CA, o.Shared} {
		for _, text := range more {
			j.Roots = append(append(j.Roots, '\n'), text...)
		}
	}
	j.User, j.Password = string(o.Secret["username"]), string(o.Secret["password"])
	j.AccessKey, j.SecretKey, j.SessionToken = string(o.Secret[s3Access]), string(o.Secret[s3Secret]), string(o.Secret["sessionToken"])
	j.Google = o.Secret[googleKey]
	if j.User == "" && j.Password == "" && (strings.HasPrefix(j.URL, "http:") || strings.HasPrefix(j.URL, "https:")) {
		j.User, j.Password = j.AccessKey, j.SecretKey
	}
	if config := o.Secret[dockerConfig]; len(config) > 0 {
		if j.User, j.Password, err = registryLogin(config, j.URL); err != nil {
			return nil, err
		}
	}
	j.Certificate, j.Key = o.Secret["tls.crt"], o.Secret["tls.key"]
	if token := strings.TrimSpace(string(o.Secret["token"])); token != "" {
		j.Token = token
	}
	return json.Marshal(j)
}

// Keys of Secrets for object stores.
const (
	s3Access, s3Secret = "accessKeyId", "secretKey"
	googleKey          = "gcs.json"
)

// dockerConfig is the key of Secrets of type kubernetes.io/dockerconfigjson.
const dockerConfig = ".dockerconfigjson"

// registryLogin finds the login for the registry of a source; none is no error.
func registryLogin(config []byte, source string) (user, password string, err error) {
	var parsed struct {
		Auths map[string]struct{ Username, Password, Auth string }
	}
	if json.Unmarshal(config, &parsed) != nil {
		return "", "", Refused(dockerConfig + " of the Secret is no JSON of that kind")
	}
	host, _, _ := strings.Cut(strings.TrimPrefix(source, "docker://"), "/")
	for name, login := range parsed.Auths {
		name, _, _ = strings.Cut(strings.TrimPrefix(strings.TrimPrefix(name, "https://"), "http://"), "/")
		if name != host {
			continue
		}
		if login.Auth != "" {
			both, err := base64.StdEncoding.DecodeString(login.Auth)
			if err != nil {
				return "", "", Refused(dockerConfig + " of the Secret: auth is not base64")
			}
			login.Username, login.Password, _ = strings.Cut(string(both), ":")
		}
		return login.Username, login.Password, nil
	}
	return "", "", nil
}
