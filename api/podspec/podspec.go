// Package podspec shows a corev1.Pod, or the template of one, as the [api.Pod] that package api judges, and checks the
// Pod fields that are no annotations (vm.md 2.6).
package podspec

import (
	"fmt"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"

	"podvirt.dev/api"
)

// IsVM says whether the labels make their Pod a VM: the label podvirt.dev/vm with a name.
func IsVM(labels map[string]string) bool { return labels[api.LabelVM] != "" }

// Resolve reads a VM Pod with all that a corev1.Pod shows: [api.Resolve], and the rules about Pod fields.
func Resolve(pod *corev1.Pod, config api.Config) (api.Machine, api.Errors) {
	machine, errs := api.Resolve(Read(pod), config)
	return machine, errs.Join(Check(pod))
}

// Read returns what [api.Resolve] looks at.
func Read(pod *corev1.Pod) api.Pod {
	view := api.Pod{
		Namespace: pod.Namespace, Name: pod.Name, UID: string(pod.UID),
		Labels: pod.Labels, Annotations: pod.Annotations, NodeArch: pod.Spec.NodeSelector[corev1.LabelArchStable],
	}
	if view.Labels == nil {
		view.Labels = map[string]string{}
	}
	grace := time.Duration(api.KubernetesGracePeriod) * time.Second
	if pod.Spec.TerminationGracePeriodSeconds != nil {
		grace = time.Duration(*pod.Spec.TerminationGracePeriodSeconds) * time.Second
	}
	view.GracePeriod = &grace
	vm := container(&pod.Spec)
	if vm == nil {
		return view
	}
	view.Limits = amounts(vm.Resources.Limits)
	requests := amounts(vm.Resources.Requests)
	view.Requests = &requests
	view.Terminal = &api.Terminal{Stdin: vm.Stdin, TTY: vm.TTY}
	view.Seccomp = seccomp(&pod.Spec, vm)
	view.Paths = paths(&pod.Spec, vm)
	return view
}

// container returns the container that is the VM, or nil.
func container(spec *corev1.PodSpec) *corev1.Container {
	i := slices.IndexFunc(spec.Containers, func(c corev1.Container) bool { return c.Name == api.ContainerName })
	if i < 0 {
		return nil
	}
	return &spec.Containers[i]
}

// Check returns what is wrong with the Pod fields that are no annotations.
func Check(pod *corev1.Pod) api.Errors {
	errs := checkSpec(&pod.Spec)
	if pod.Annotations[api.KeyCPUDedicated] == "true" {
		errs = append(errs, checkGuaranteed(&pod.Spec)...)
	}
	if container(&pod.Spec) == nil {
		errs = append(errs, api.Error{
			Key:  api.LabelVM,
			Text: fmt.Sprintf(`%s: %q: no container is named "vm"`, api.LabelVM, pod.Labels[api.LabelVM]),
		})
	}
	return errs
}

// checkSpec refuses what a VM Pod must not have, and a second container that claims to be the VM (VM-001).
func checkSpec(spec *corev1.PodSpec) api.Errors {
	var errs api.Errors
	wrong := func(key, text string) { errs = append(errs, api.Error{Key: key, Text: key + ": " + text}) }
	for _, field := range []struct {
		name string
		set  bool
	}{
		{"spec.hostNetwork", spec.HostNetwork}, {"spec.hostPID", spec.HostPID},
		{"spec.shareProcessNamespace", spec.ShareProcessNamespace != nil && *spec.ShareProcessNamespace},
	} {
		if field.set {
			wrong(field.name, "true: not allowed on a VM Pod")
		}
	}
	for i := range spec.Containers {
		c := &spec.Containers[i]
		if c.Name == api.ContainerName {
			continue
		}
		if c.Image == api.AliasImage || slices.ContainsFunc(c.VolumeDevices, isDisk) || slices.ContainsFunc(c.VolumeMounts, isDiskMount) {
			wrong("spec.containers["+c.Name+"]", `claims to be the VM; only container "vm" can`)
		}
		for _, port := range c.Ports {
			if port.ContainerPort >= api.PortBase && port.ContainerPort <= api.PortStatus {
				wrong("spec.containers["+c.Name+"].ports", fmt.Sprintf("%d: kept for the launcher (%d to %d)",
					port.ContainerPort, api.PortBase, api.PortStatus))
			}
		}
	}
	return errs
}

// checkGuaranteed names the containers that keep the Pod out of class Guaranteed, in which alone containers get CPUs of
// their own. What is wrong with the CPUs of container vm is said of its annotation.
func checkGuaranteed(spec *corev1.PodSpec) api.Errors {
	var errs api.Errors
	look := func(field string, c *corev1.Container) {
		for _, name := range []corev1.ResourceName{corev1.ResourceCPU, corev1.ResourceMemory} {
			if c.Name == api.ContainerName && name == corev1.ResourceCPU {
				continue
			}
			limit, request := c.Resources.Limits[name], c.Resources.Requests[name]
			if limit.IsZero() || !request.IsZero() && request.Cmp(limit) != 0 {
				key := fmt.Sprintf("spec.%s[%s].resources.limits.%s", field, c.Name, name)
				errs = append(errs, api.Error{Key: key, Text: key + ": must be set and equal to the request: " + api.KeyCPUDedicated + " needs it in every container"})
			}
		}
	}
	for i := range spec.InitContainers {
		look("initContainers", &spec.InitContainers[i])
	}
	for i := range spec.Containers {
		look("containers", &spec.Containers[i])
	}
	return errs
}

func isDisk(d corev1.VolumeDevice) bool { return strings.HasPrefix(d.DevicePath, api.PathDisks) }

func isDiskMount(m corev1.VolumeMount) bool { return strings.HasPrefix(m.MountPath, api.PathDisks) }

func amounts(list corev1.ResourceList) api.Resources {
	r := api.Resources{
		CPU: list.Cpu().MilliValue(), Memory: list.Memory().Value(),
		Hugepages: map[string]int64{}, Extended: map[string]int64{},
	}
	for name, amount := range list {
		size, huge := strings.CutPrefix(string(name), api.HugepagesPrefix)
		switch {
		case huge:
			r.Hugepages[size] = amount.Value()
		case strings.Contains(string(name), "/"):
			r.Extended[string(name)] = amount.Value()
		}
	}
	return r
}

// seccomp returns the profile that container vm runs under, "" for none.
func seccomp(spec *corev1.PodSpec, vm *corev1.Container) string {
	var profile *corev1.SeccompProfile
	if spec.SecurityContext != nil {
		profile = spec.SecurityContext.SeccompProfile
	}
	if vm.SecurityContext != nil && vm.SecurityContext.SeccompProfile != nil {
		profile = vm.SecurityContext.SeccompProfile
	}
	switch {
	case profile == nil:
		return ""
	case profile.LocalhostProfile != nil:
		return *profile.LocalhostProfile
	default:
		return string(profile.Type)
	}
}

// paths lists device paths and mount points of container vm with what is behind them.
func paths(spec *corev1.PodSpec, vm *corev1.Container) []api.Path {
	volumes := make(map[string]*corev1.Volume, len(spec.Volumes))
	for i := range spec.Volumes {
		volumes[spec.Volumes[i].Name] = &spec.Volumes[i]
	}
	var all []api.Path
	for _, device := range vm.VolumeDevices {
		path := behind(volumes[device.Name], device.DevicePath)
		path.Source = api.SourceBlock
		all = append(all, path)
	}
	for _, mount := range vm.VolumeMounts {
		path := behind(volumes[mount.Name], mount.MountPath)
		path.ReadOnly = path.ReadOnly || mount.ReadOnly
		all = append(all, path)
	}
	return all
}

func behind(volume *corev1.Volume, at string) api.Path {
	path := api.Path{Path: strings.TrimRight(at, "/")}
	if volume == nil {
		return path
	}
	switch {
	case volume.PersistentVolumeClaim != nil:
		path.Source, path.Claim = api.SourceFilesystem, volume.PersistentVolumeClaim.ClaimName
		path.ReadOnly = volume.PersistentVolumeClaim.ReadOnly
	case volume.Ephemeral != nil:
		path.Source = api.SourceFilesystem
	case volume.Image != nil:
		path.Source, path.ReadOnly = api.SourceImage, true
	case volume.EmptyDir != nil:
		path.Source, path.Size = api.SourceEmptyDir, bytes(volume.EmptyDir.SizeLimit)
	case volume.CSI != nil:
		path.Source = api.SourceCSI
	case volume.Secret != nil, volume.ConfigMap != nil, volume.DownwardAPI != nil, volume.Projected != nil:
		path.Source, path.ReadOnly = api.SourceFiles, true
	}
	return path
}

func bytes(q *resource.Quantity) int64 {
	if q == nil {
		return 0
	}
	return q.Value()
}
