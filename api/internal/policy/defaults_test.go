package policy

import (
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/runtime"
)

// setDefaults fills in what the API server fills into a Pod when it decodes it and after every mutation, as far as the
// policies meet it (k8s.io/kubernetes/pkg/apis/core/v1/defaults.go, which only the scheduler's main may import).
func setDefaults(object runtime.Object) {
	pod, ok := object.(*corev1.Pod)
	if !ok {
		return
	}
	spec := &pod.Spec
	spec.TerminationGracePeriodSeconds = orDefault(spec.TerminationGracePeriodSeconds, 30)
	spec.EnableServiceLinks = orDefault(spec.EnableServiceLinks, true)
	if spec.SchedulerName == "" {
		spec.SchedulerName = "default-scheduler"
	}
	if spec.SecurityContext == nil {
		spec.SecurityContext = &corev1.PodSecurityContext{}
	}
	for i := range spec.Containers {
		c := &spec.Containers[i]
		if c.ImagePullPolicy == "" {
			c.ImagePullPolicy = corev1.PullIfNotPresent
			if c.Image == "podvirt.dev/launcher" || c.Image == "example.org/proxy" {
				c.ImagePullPolicy = corev1.PullAlways
			}
		}
		for name, amount := range c.Resources.Limits {
			if c.Resources.Requests == nil {
				c.Resources.Requests = corev1.ResourceList{}
			}
			if _, set := c.Resources.Requests[name]; !set {
				c.Resources.Requests[name] = amount
			}
		}
	}
	for i := range spec.Volumes {
		v := &spec.Volumes[i]
		if v.DownwardAPI != nil {
			v.DownwardAPI.DefaultMode = orDefault(v.DownwardAPI.DefaultMode, corev1.DownwardAPIVolumeSourceDefaultMode)
			for j := range v.DownwardAPI.Items {
				if ref := v.DownwardAPI.Items[j].FieldRef; ref != nil {
					ref.APIVersion = "v1"
				}
			}
		}
		if v.Secret != nil {
			v.Secret.DefaultMode = orDefault(v.Secret.DefaultMode, corev1.SecretVolumeSourceDefaultMode)
		}
	}
}

func orDefault[T any](p *T, value T) *T {
	if p != nil {
		return p
	}
	return new(value)
}
