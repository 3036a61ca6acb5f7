package main

import (
	"strings"
	"time"

	"podvirt.dev/api"
)

// dedicated: CPUs of one's own are given where the kubelet gives any, from one cell; those who need them wait, wake and
// preempt like those who need pages (SC-051, SC-060, SC-083).
func (f *fleet) dedicated() {
	host := cpuFacts("IvyBridge", "aes")
	f.add(machine{"shared", host, nil}, machine{"static", host, nil})
	own := map[string]string{api.KeyCPUModel: "IvyBridge", api.KeyCPUDedicated: "true"}
	f.annotateNode("shared", api.NodeNUMA, f.cpus("none", ""))
	f.annotateNode("static", api.NodeNUMA, f.cpus("static", ""))
	for _, v := range []struct{ name, cpus, want string }{{"own-3", "3", "static/0"}, {"own-4", "4", "static/1"}} {
		f.create(vm{name: v.name, cpus: v.cpus, annotations: own})
		if got := f.placed(v.name); got != v.want {
			f.Errorf("%s CPUs: %s; want %s", v.cpus, got, v.want)
		}
	}
	f.create(vm{name: "own-late", cpus: "1", annotations: own})
	got := f.placed("own-late")
	for _, want := range []string{"1 CPU manager is not static", "1 not enough whole CPUs: 1 needed"} {
		if !strings.Contains(got, want) {
			f.Errorf("message %q lacks %q", got, want)
		}
	}
	f.create(vm{name: "own-half", cpus: "1500m", annotations: own})
	if got := f.placed("own-half"); !strings.Contains(got, "needs equal integer CPU requests and limits; found request 1500m, limit 1500m") {
		f.Errorf("message %q", got)
	}
	f.create(vm{name: "own-urgent", cpus: "4", priority: "high", annotations: own})
	gone := func(name string) bool { return getPod(f.T, f.client, name).DeletionTimestamp != nil }
	await(f.T, "the VM in the larger cell has to go", func() bool { return gone("own-4") })
	if gone("own-3") {
		f.Error("the VM in the other cell has to go as well")
	}
	f.remove("own-4")
	await(f.T, "the urgent VM has its CPUs", func() bool { return getPod(f.T, f.client, "own-urgent").Spec.NodeName != "" })
	f.remove("own-3")
	await(f.T, "who waited is placed", func() bool { return getPod(f.T, f.client, "own-late").Spec.NodeName != "" })
	for _, name := range []string{"own-late", "own-half", "own-urgent"} {
		f.remove(name)
	}
}

// cpus are the facts of a node with two cells of four CPUs, one of which is the system's.
func (f *fleet) cpus(policy, exclusive string) string {
	f.Helper()
	facts := api.NUMAFacts{
		V: 1, Boot: boot, Observed: time.Now(), ThreadsPerCore: 1, Kubelet: &api.Kubelet{CPU: policy, Memory: "None", Topology: "none", TopologyScope: "container"},
		Cells: []api.Cell{{ID: 0, CPUs: "0-3", Reserved: "0", Exclusive: exclusive, Distances: []int{10, 21}}, {ID: 1, CPUs: "4-7", Distances: []int{21, 10}}},
	}
	text, err := facts.Encode()
	if err != nil {
		f.Fatal(err)
	}
	return text
}
