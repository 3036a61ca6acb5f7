package allotment

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"slices"
	"time"

	"k8s.io/client-go/rest"

	"podvirt.dev/api"
)

// Errors of [ConfigReader], in words for the list of problems.
var (
	ErrForbidden   = errors.New("configuration is forbidden: nodes/configz")
	ErrUnreachable = errors.New("configuration cannot be reached")
)

const (
	configTimeout = 5 * time.Second
	maxConfig     = 1 << 20 // bytes
)

// ConfigReader returns what reads the kubelet's configuration over HTTPS at the address that the Node names, HOST:PORT,
// with the account of config. The kubelet's certificate is as a rule signed by nobody the cluster knows, and its address
// is one of this very node, so it is not verified.
func ConfigReader(config *rest.Config, address func(context.Context) (string, error)) (func(context.Context) (*api.Kubelet, error), error) {
	own := rest.CopyConfig(config)
	own.Insecure, own.CAFile, own.CAData, own.ServerName = true, "", nil, ""
	own.Timeout = configTimeout
	client, err := rest.HTTPClientFor(own)
	if err != nil {
		return nil, fmt.Errorf("client for the kubelet: %w", err)
	}
	return func(ctx context.Context) (*api.Kubelet, error) {
		host, err := address(ctx)
		if err != nil {
			return nil, err
		}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, "https://"+host+"/configz", http.NoBody)
		if err != nil {
			return nil, err
		}
		response, err := client.Do(request)
		if err != nil {
			return nil, ErrUnreachable
		}
		defer response.Body.Close()
		switch response.StatusCode {
		case http.StatusOK:
		case http.StatusForbidden, http.StatusUnauthorized:
			return nil, ErrForbidden
		default:
			return nil, fmt.Errorf("%w: %s", ErrUnreachable, response.Status)
		}
		text, err := io.ReadAll(io.LimitReader(response.Body, maxConfig))
		if err != nil {
			return nil, ErrUnreachable
		}
		return parse(text)
	}, nil
}

// parse takes the policies out of a KubeletConfiguration as /configz wraps it (k8s.io/kubelet/config/v1beta1).
func parse(text []byte) (*api.Kubelet, error) {
	var configz struct {
		Config *struct {
			CPU      string            `json:"cpuManagerPolicy"`
			Options  map[string]string `json:"cpuManagerPolicyOptions"`
			Memory   string            `json:"memoryManagerPolicy"`
			Topology string            `json:"topologyManagerPolicy"`
			Scope    string            `json:"topologyManagerScope"`
		} `json:"kubeletconfig"`
	}
	if err := json.Unmarshal(text, &configz); err != nil {
		return nil, fmt.Errorf("configuration: %w", err)
	}
	if configz.Config == nil {
		return nil, errors.New("configuration has no kubeletconfig")
	}
	c := configz.Config
	maps.DeleteFunc(c.Options, func(_, value string) bool { return value != "true" })
	return &api.Kubelet{
		CPU: c.CPU, CPUOptions: slices.Sorted(maps.Keys(c.Options)), Memory: c.Memory, Topology: c.Topology, TopologyScope: c.Scope,
	}, nil
}
