package virtualmachine

import (
	"context"
	"fmt"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/fields"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/informers"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
)

// policySource holds the policy that is in force: the last valid podvirt-config, or the defaults.
type policySource struct {
	current atomic.Pointer[api.Config]
}

func newPolicySource() *policySource {
	s := &policySource{}
	s.set(api.Config{})
	return s
}

func (s *policySource) get() api.Config { return *s.current.Load() }

// watch follows the ConfigMap until ctx ends. changed is called after each change of the policy in force.
func (s *policySource) watch(
	ctx context.Context, client kubernetes.Interface, name types.NamespacedName, changed func(klog.Logger),
) error {
	factory := informers.NewSharedInformerFactoryWithOptions(client, 0, informers.WithNamespace(name.Namespace),
		informers.WithTweakListOptions(func(options *metav1.ListOptions) {
			options.FieldSelector = fields.OneTermEqualSelector(metav1.ObjectNameField, name.Name).String()
		}))
	logger := klog.FromContext(ctx).WithValues("configMap", name.String())
	_, err := factory.Core().V1().ConfigMaps().Informer().AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { s.update(logger, obj); changed(logger) },
		UpdateFunc: func(_, obj any) { s.update(logger, obj); changed(logger) },
		DeleteFunc: func(any) { s.set(api.Config{}); changed(logger) },
	})
	if err != nil {
		return fmt.Errorf("watching ConfigMap %s: %w", name, err)
	}
	factory.Start(ctx.Done())
	return nil
}

func (s *policySource) set(config api.Config) {
	if config.Emulation == "" {
		config.Emulation = "forbid" // the built-in default; to the parser an empty value means "not visible"
	}
	s.current.Store(&config)
}

// update puts a valid ConfigMap in force. An invalid one is not applied at all: the last valid one stays (operations.md 2.2).
func (s *policySource) update(logger klog.Logger, obj any) {
	object, ok := obj.(*corev1.ConfigMap)
	if !ok {
		return
	}
	config, errs := api.ParseConfig(object.Data)
	if err := errs.Err(); err != nil {
		logger.Info("Invalid configuration is not applied; the last valid one stays in force", "err", err)
		return
	}
	s.set(config)
}
