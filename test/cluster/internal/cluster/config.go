package cluster

import (
	"net/http"
	"net/url"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
)

// Config returns an administrator's client configuration.
func (c *Cluster) Config() (*rest.Config, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Layout.Kubeconfig())
	if err != nil {
		return nil, err
	}
	config.Proxy = noProxy
	config.QPS, config.Burst = 100, 200
	return config, nil
}

// noProxy: the cluster is on this host, whatever the environment says.
func noProxy(*http.Request) (*url.URL, error) { return nil, nil } //nolint:nilnil // how http.Transport spells "none"

// Client returns an administrator's client.
func (c *Cluster) Client() (*kubernetes.Clientset, error) {
	config, err := c.Config()
	if err != nil {
		return nil, err
	}
	return kubernetes.NewForConfig(config)
}
