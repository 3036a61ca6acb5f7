// Package harness gives tests the local cluster: one for all tests, brought up by the first that asks and left running.
//
// A test takes a namespace of its own with Namespace; when the test fails, what happened in it is logged before it is
// removed.
package harness

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"podvirt.dev/internal/require"
	"podvirt.dev/test/cluster/internal/cluster"
	"podvirt.dev/test/cluster/internal/layout"
)

// Timeouts that hold on two cores under emulation.
const (
	Short  = 30 * time.Second // one object changes its state
	Medium = 2 * time.Minute  // a Pod starts
	Long   = 6 * time.Minute  // an emulated guest with systemd boots
)

const pollPause = 200 * time.Millisecond

// Cluster is a running cluster, seen by an administrator.
type Cluster struct {
	Client  kubernetes.Interface
	Dynamic dynamic.Interface
	Config  *rest.Config
	Nodes   []string // names
	local   *cluster.Cluster
}

// shared is the cluster of this test process. Tests of one package run in one process, and one machine has one cluster.
type shared struct {
	once    sync.Once
	cluster *Cluster
	err     error
}

//nolint:gochecknoglobals // the one cluster of all tests
var up, installed shared

// Get returns a cluster without podvirt: nodes Ready, images of the cache loaded.
func Get(t testing.TB) *Cluster {
	t.Helper()
	require.Root(t)
	up.once.Do(func() { up.cluster, up.err = start(t.Context()) })
	if up.err != nil {
		t.Fatalf("local cluster: %v", up.err)
	}
	return up.cluster
}

// Installed returns the cluster with podvirt installed and ready.
func Installed(t testing.TB) *Cluster {
	t.Helper()
	c := Get(t)
	installed.once.Do(func() { installed.err = c.local.Install(t.Context()) })
	if installed.err != nil {
		t.Fatalf("installing podvirt: %v", installed.err)
	}
	return c
}

func start(ctx context.Context) (*Cluster, error) {
	l, err := layout.FromEnv(os.Getenv)
	if err != nil {
		return nil, err
	}
	local := cluster.New(l, os.Stderr)
	if err := local.Up(ctx); err != nil {
		return nil, err
	}
	images, err := local.CachedImages()
	if err != nil {
		return nil, err
	}
	if err := local.LoadImages(ctx, images); err != nil {
		return nil, err
	}
	return connect(local)
}

func connect(local *cluster.Cluster) (*Cluster, error) {
	config, err := local.Config()
	if err != nil {
		return nil, err
	}
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, err
	}
	c := &Cluster{Client: client, Dynamic: dyn, Config: config, local: local}
	for _, m := range local.Layout.Machines()[1:] {
		c.Nodes = append(c.Nodes, m.Name)
	}
	return c, nil
}

// RequireImage skips the test, or fails it, when an image of the project was not built.
func (c *Cluster) RequireImage(t testing.TB, name string) string {
	t.Helper()
	_, err := os.Stat(filepath.Join(c.local.Layout.Images(), name+".tar"))
	require.Feature(t, err == nil, "image "+name+" (make images)")
	return "localhost/podvirt/" + name + ":dev"
}

// Kubeconfig is the path of the administrator's kubeconfig, for tests of command lines.
func (c *Cluster) Kubeconfig() string { return c.local.Layout.Kubeconfig() }

// Kubectl is the path of kubectl.
func (c *Cluster) Kubectl() string {
	return filepath.Join(c.local.Layout.Machine(c.Nodes[0]), "opt/podvirt-local/bin/kubectl")
}

// Eventually calls check until it succeeds, and fails the test with its last error when the time is up.
// An error that wraps ErrNever ends the wait at once.
func Eventually(t testing.TB, timeout time.Duration, what string, check func(ctx context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), timeout)
	defer cancel()
	ticker := time.NewTicker(pollPause)
	defer ticker.Stop()
	begin := time.Now()
	var last error
	for {
		err := check(ctx)
		if ctx.Err() != nil && last != nil {
			err = last // what the end of the wait broke off says nothing
		}
		last = err
		if err == nil {
			t.Logf("%s: after %s", what, time.Since(begin).Round(100*time.Millisecond))
			return
		}
		if errors.Is(err, ErrNever) {
			t.Fatalf("%s: %v", what, err)
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: not within %s: %v", what, timeout, err)
		case <-ticker.C:
		}
	}
}

// ErrNever says that what is waited for cannot happen any more.
var ErrNever = errors.New("this cannot happen any more")

// objectName makes a valid object name of a test's name.
func objectName(test string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z', r >= '0' && r <= '9':
			return r
		case r >= 'A' && r <= 'Z':
			return r + ('a' - 'A')
		default:
			return '-'
		}
	}, strings.TrimPrefix(test, "Test"))
	const most = 40
	return strings.Trim(fmt.Sprintf("t-%.*s", most, name), "-")
}
