package program

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/metadata"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/leaderelection"
	"k8s.io/client-go/tools/leaderelection/resourcelock"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/controller/internal/claims"
	"podvirt.dev/controller/internal/events"
	"podvirt.dev/controller/internal/launcher"
	"podvirt.dev/controller/internal/metrics"
	"podvirt.dev/controller/internal/vms"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/selfsigned"
)

// leaseName is that of the Lease.
const leaseName = "podvirt-controller"

// Times of the election, those of Kubernetes' own components.
const (
	leaseDuration = 15 * time.Second
	renewDeadline = 10 * time.Second
	retryPeriod   = 2 * time.Second
)

// Limits of requests to the API server (operations.md 2.1).
const (
	clientQPS   = 200
	clientBurst = 400
)

// configPeriod is the pause between two looks at podvirt-config: one number of it is read, for new Pods.
const configPeriod = 30 * time.Second

// errLost says that another instance leads now; this one starts again.
var errLost = errors.New("the lease is lost")

// controller is the running program.
type controller struct {
	options
	client   kubernetes.Interface
	metadata metadata.Interface
	metrics  *metrics.Metrics
	port     atomic.Int64 // of the launchers' status
	follower *vms.Follower
	keeper   *claims.Keeper
	elector  *leaderelection.LeaderElector
}

func serve(ctx context.Context, o options) error {
	c, err := newController(ctx, o)
	if err != nil {
		return err
	}
	klog.FromContext(ctx).Info("The controller starts", "version", cli.Version, "identity", o.identity)
	group, ctx := errgroup.WithContext(ctx)
	group.Go(func() error { return selfsigned.Serve(ctx, leaseName, o.metrics, c.metrics.Handler(c.missing)) })
	group.Go(func() error {
		c.elector.Run(ctx)
		if ctx.Err() == nil {
			return errLost
		}
		return nil
	})
	return group.Wait()
}

func newController(ctx context.Context, o options) (*controller, error) {
	config, err := clusterConfig(o.kubeconfig)
	if err != nil {
		return nil, fmt.Errorf("reaching the cluster: %w", err)
	}
	config.QPS, config.Burst = clientQPS, clientBurst
	c := &controller{options: o, metrics: metrics.New(cli.Version)}
	c.port.Store(api.PortStatus)
	if c.metadata, err = metadata.NewForConfig(config); err != nil {
		return nil, fmt.Errorf("client for metadata: %w", err)
	}
	config.ContentType, config.AcceptContentTypes = "application/vnd.kubernetes.protobuf", "application/vnd.kubernetes.protobuf,application/json"
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("client: %w", err)
	}
	c.client = client
	recorder := &events.Recorder{Client: client.EventsV1(), Instance: o.identity}
	c.follower = vms.New(vms.Options{
		Client: client.CoreV1(), Asker: launcher.New(), Recorder: recorder, Observer: c.metrics, Period: o.period, Silence: o.silence,
		Port: func() int { return int(c.port.Load()) },
	})
	c.keeper = claims.New(claims.Options{
		Client: client.CoreV1(), Metadata: c.metadata, Recorder: recorder, Observer: c.metrics, Patience: o.patience,
	})
	c.elector, err = leaderelection.NewLeaderElector(c.election(ctx))
	if err != nil {
		return nil, fmt.Errorf("election: %w", err)
	}
	return c, nil
}

func clusterConfig(kubeconfig string) (*rest.Config, error) {
	if kubeconfig == "" {
		return rest.InClusterConfig()
	}
	return clientcmd.BuildConfigFromFlags("", kubeconfig)
}

// election gives the Lease back at the end, so that the other instance need not wait for it to run out.
func (c *controller) election(ctx context.Context) leaderelection.LeaderElectionConfig {
	logger := klog.FromContext(ctx)
	return leaderelection.LeaderElectionConfig{
		Lock: &resourcelock.LeaseLock{
			LeaseMeta:  metav1.ObjectMeta{Name: leaseName, Namespace: c.namespace},
			Client:     c.client.CoordinationV1(),
			LockConfig: resourcelock.ResourceLockConfig{Identity: c.identity},
		},
		LeaseDuration: leaseDuration, RenewDeadline: renewDeadline, RetryPeriod: retryPeriod, ReleaseOnCancel: true, Name: leaseName,
		Callbacks: leaderelection.LeaderCallbacks{
			OnStartedLeading: c.lead,
			OnStoppedLeading: func() { c.metrics.Leads(false) },
			OnNewLeader:      func(identity string) { logger.Info("A leader", "identity", identity) },
		},
	}
}

// lead does the work until ctx ends. What the next leader does at the same time for a moment has the same result.
func (c *controller) lead(ctx context.Context) {
	c.metrics.Leads(true)
	if err := c.readConfig(ctx); err != nil {
		klog.FromContext(ctx).Error(err, "podvirt-config not read")
	}
	var group errgroup.Group
	group.Go(func() error { c.follower.Run(ctx); return nil })
	group.Go(func() error { c.keeper.Run(ctx); return nil })
	group.Go(func() error { c.followConfig(ctx); return nil })
	_ = group.Wait() // none of them fails
}

func (c *controller) followConfig(ctx context.Context) {
	tick := time.NewTicker(configPeriod)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			if err := c.readConfig(ctx); err != nil && ctx.Err() == nil {
				klog.FromContext(ctx).Error(err, "podvirt-config not read")
			}
		}
	}
}

// readConfig notes the port of the launchers. A value with a mistake changes nothing.
func (c *controller) readConfig(ctx context.Context) error {
	const key = "launcher.port-base"
	object, err := c.client.CoreV1().ConfigMaps(c.namespace).Get(ctx, api.ConfigName, metav1.GetOptions{})
	if err != nil && !apierrors.IsNotFound(err) {
		return err
	}
	base := int64(api.PortBase)
	if text := object.Data[key]; err == nil && text != "" {
		config, _ := api.ParseConfig(map[string]string{key: text})
		if base = int64(config.PortBase); base == 0 {
			return fmt.Errorf("data.%s: %s: not in force", key, strconv.Quote(text))
		}
	}
	c.port.Store(base + api.PortStatus - api.PortBase)
	return nil
}

// missing says why this instance is not ready: one that waits for its turn is, as soon as it knows who leads.
func (c *controller) missing() string {
	switch {
	case c.elector.GetLeader() == "":
		return "no leader is known"
	case c.elector.IsLeader() && (!c.follower.Synced() || !c.keeper.Synced()):
		return "not all Pods, claims and Nodes are listed"
	}
	return ""
}
