package main

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
)

// configure puts podvirt-config in force.
func (f *fleet) configure(data map[string]string) {
	f.Helper()
	maps := f.client.CoreV1().ConfigMaps(api.SystemNamespace)
	object := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Name: api.ConfigName}, Data: data}
	if _, err := maps.Update(f.Context(), object, metav1.UpdateOptions{}); err == nil {
		return
	}
	if _, err := maps.Create(f.Context(), object, metav1.CreateOptions{}); err != nil {
		f.Fatal(err)
	}
}

// obsolete: models on the list are refused where a VM names them, whoever offers them; the list can be extended and
// reduced while VMs wait and run (SC-016, VM-023).
func (f *fleet) obsolete() {
	f.add(machine{"ancient", cpuFacts("Conroe Cascadelake-Server", "sse2"), nil})
	for name, model := range map[string]string{"listed": "Conroe", "not-listed": "Cascadelake-Server"} {
		f.create(vm{name: name, annotations: map[string]string{api.KeyCPUModel: model}})
	}
	const text = `podvirt.dev/cpu-model: "Conroe": Conroe is on the obsolete list (cpu.obsolete-models)`
	if got := f.placed("listed"); !strings.Contains(got, text) {
		f.Errorf("message %q; want %q", got, text)
	}
	if got := f.placed("not-listed"); got != "ancient/" {
		f.Errorf("not listed: %q; want it placed", got)
	}
	f.configure(map[string]string{"cpu.obsolete-models": "-Conroe, Cascadelake-Server"})
	await(f.T, "the VM that waits is placed", func() bool { return getPod(f.T, f.client, "listed").Spec.NodeName == "ancient" })
	f.create(vm{name: "listed-now", annotations: map[string]string{api.KeyCPUModel: "Cascadelake-Server"}})
	if got := f.placed("listed-now"); !strings.Contains(got, "Cascadelake-Server is on the obsolete list") {
		f.Errorf("message %q", got)
	}
	if pod := getPod(f.T, f.client, "not-listed"); pod.Spec.NodeName != "ancient" || pod.DeletionTimestamp != nil {
		f.Error("a VM that runs does not stay")
	}
	f.configure(nil)
	await(f.T, "what waits is placed when the list is the built-in one again", func() bool {
		return getPod(f.T, f.client, "listed-now").Spec.NodeName == "ancient"
	})
	for _, name := range []string{"listed", "not-listed", "listed-now"} {
		f.remove(name)
	}
}

// reboot: a node that has booted anew takes no VM before its facts are taken anew (SC-019).
func (f *fleet) reboot() {
	f.add(machine{"reboots", cpuFacts("Snowridge", "aes"), nil})
	nodes := f.client.CoreV1().Nodes()
	node, err := nodes.Get(f.Context(), "reboots", metav1.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	const later = "5f7f5f3e-7d0c-4b3e-9a43-6a5a2f1f9b22"
	node.Status.NodeInfo.BootID = later
	if _, err := nodes.UpdateStatus(f.Context(), node, metav1.UpdateOptions{}); err != nil {
		f.Fatal(err)
	}
	await(f.T, "the scheduler sees that the facts are stale", func() bool { return f.metric("podvirt_scheduler_facts_stale_nodes") == 1 })
	f.create(vm{name: "patient", annotations: map[string]string{api.KeyCPUModel: "Snowridge"}})
	if got := f.placed("patient"); !strings.Contains(got, "1 podvirt facts older than the node's last boot") {
		f.Errorf("message %q", got)
	}
	facts := strings.Replace(node.Annotations[api.NodeCPU], boot, later, 1)
	f.annotateNode("reboots", api.NodeCPU, strings.Replace(facts, `"v":1`, `"v":2,"gift":true`, 1))
	await(f.T, "it is placed", func() bool { return getPod(f.T, f.client, "patient").Spec.NodeName == "reboots" })
	await(f.T, "no node has stale facts, one has newer ones", func() bool {
		return f.metric("podvirt_scheduler_facts_stale_nodes") == 0 && f.metric("podvirt_scheduler_facts_newer_version") == 1
	})
	f.remove("patient")
}

// units: a node takes as many VMs as it has units of podvirt.dev/kvm (SC-103).
func (f *fleet) units() {
	f.add(machine{"small", cpuFacts("Denverton", "aes"), nil})
	nodes := f.client.CoreV1().Nodes()
	node, err := nodes.Get(f.Context(), "small", metav1.GetOptions{})
	if err != nil {
		f.Fatal(err)
	}
	node.Status.Allocatable[api.ResourceKVM] = resource.MustParse("5")
	if _, err := nodes.UpdateStatus(f.Context(), node, metav1.UpdateOptions{}); err != nil {
		f.Fatal(err)
	}
	names := []string{"unit-1", "unit-2", "unit-3", "unit-4", "unit-5"}
	for _, name := range append(names, "unit-6") {
		f.create(vm{name: name, annotations: map[string]string{api.KeyCPUModel: "Denverton"}})
	}
	waiting := 0
	for _, name := range append(names, "unit-6") {
		switch got := f.placed(name); {
		case strings.Contains(got, "1 Insufficient podvirt.dev/kvm"):
			waiting++
		case got != "small/":
			f.Errorf("%s: %q", name, got)
		}
	}
	if waiting != 1 {
		f.Errorf("%d VMs wait for a unit; want one of six", waiting)
	}
	for _, name := range append(names, "unit-6") {
		f.remove(name)
	}
}
