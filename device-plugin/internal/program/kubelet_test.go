package program

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/device-plugin/internal/facts"
	"podvirt.dev/internal/apitest"
	"podvirt.dev/internal/kubelettest"
)

// configz is the HTTPS port of a kubelet.
type configz struct {
	server *httptest.Server
	text   atomic.Pointer[string] // of the configuration; nil: forbidden
}

func serveConfigz(t *testing.T) *configz {
	c := &configz{}
	c.set("none", "none")
	c.server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		text := c.text.Load()
		if text == nil || r.URL.Path != "/configz" || !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer ") {
			w.WriteHeader(http.StatusForbidden)
			return
		}
		_, _ = w.Write([]byte(*text))
	}))
	t.Cleanup(c.server.Close)
	return c
}

// set answers as a kubelet of version 1.37 does, with a few other fields.
func (c *configz) set(cpu, topology string) {
	text := `{"kubeletconfig":{"enableServer":true,"cpuManagerPolicy":"` + cpu + `","cpuManagerPolicyOptions":` +
		`{"full-pcpus-only":"true","distribute-cpus-across-numa":"false"},"cpuManagerReconcilePeriod":"10s",` +
		`"memoryManagerPolicy":"None","topologyManagerPolicy":"` + topology + `","topologyManagerScope":"container","maxPods":110}}`
	c.text.Store(&text)
}

// addTo writes where the kubelet is into the status of its Node.
func (c *configz) addTo(t *testing.T, server *apitest.Server, name string) {
	t.Helper()
	host, port, err := net.SplitHostPort(c.server.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	number, err := strconv.ParseInt(port, 10, 32)
	if err != nil {
		t.Fatal(err)
	}
	nodes := server.Client.CoreV1().Nodes()
	node, err := nodes.Get(t.Context(), name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	node.Status.Addresses = []corev1.NodeAddress{{Type: corev1.NodeHostName, Address: name}, {Type: corev1.NodeInternalIP, Address: host}}
	node.Status.DaemonEndpoints.KubeletEndpoint.Port = int32(number)
	if _, err := nodes.UpdateStatus(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
}

// kubeletPolicies: what the kubelet does with CPUs, and who has some for himself, stands on the Node; a kubelet that
// starts anew is asked again, and one that does not say counts as one without policies (SC-011).
func (b *bench) kubeletPolicies(t *testing.T) {
	const patience = 60 * time.Second
	taken := api.NUMAFacts{V: 1, Boot: b.boot, Observed: time.Now(), ThreadsPerCore: 2, Cells: []api.Cell{
		{ID: 0, CPUs: "0-3", Distances: []int{10, 21}}, {ID: 1, CPUs: "4-7", Distances: []int{21, 10}},
	}}
	text, err := taken.Encode()
	if err != nil {
		t.Fatal(err)
	}
	b.replace("facts/"+facts.NUMAFile, text)
	published := func() api.NUMAFacts {
		numa, err := api.DecodeNUMAFacts(b.node().Annotations[api.NodeNUMA])
		if err != nil {
			return api.NUMAFacts{}
		}
		return numa
	}
	see := func(what string, want *api.Kubelet, reserved, exclusive0, exclusive1 string) {
		t.Helper()
		kubelettest.Eventually(t, patience, what, func() bool {
			now := published()
			return len(now.Cells) == 2 && cmp.Equal(now.Kubelet, want) && now.Cells[0].Reserved == reserved &&
				now.Cells[0].Exclusive == exclusive0 && now.Cells[1].Exclusive == exclusive1
		})
	}
	options := []string{"full-pcpus-only"}
	none := &api.Kubelet{CPU: "none", CPUOptions: options, Memory: "None", Topology: "none", TopologyScope: "container"}
	see("no policy", none, "", "", "")

	b.configz.set("static", "single-numa-node")
	b.kubelet.Allocatable(1, 2, 3, 4, 5, 6, 7)
	restart := func() {
		if err := os.Chtimes(b.path("pods.sock"), time.Time{}, time.Now()); err != nil { // as if it were made anew
			t.Fatal(err)
		}
	}
	restart()
	static := &api.Kubelet{CPU: "static", CPUOptions: options, Memory: "None", Topology: "single-numa-node", TopologyScope: "container"}
	see("static", static, "0", "", "")
	b.kubelet.GiveCPUs("db1", 3, 4)
	see("CPUs of a container", static, "0", "3", "4")
	b.kubelet.End("db1")
	see("they are free again", static, "0", "", "")

	b.configz.text.Store(nil)
	restart()
	see("the kubelet does not say", nil, "", "", "")
	kubelettest.Eventually(t, patience, "the problem", func() bool {
		cpu, err := api.DecodeCPUFacts(b.node().Annotations[api.NodeCPU])
		return err == nil && strings.Contains(strings.Join(cpu.Problems, "\n"), "kubelet: configuration is forbidden: nodes/configz")
	})
}

// startupTaint: who makes a node keeps VMs off it by a taint, which goes when the facts are there, and only where that is
// wanted; other taints stay (SC-024).
func (b *bench) startupTaint(t *testing.T) {
	nodes := b.server.Client.CoreV1().Nodes()
	node := b.node()
	foreign := corev1.Taint{Key: "example.org/dedicated", Value: "db", Effect: corev1.TaintEffectNoSchedule}
	node.Spec.Taints = []corev1.Taint{{Key: api.TaintNotReady, Effect: corev1.TaintEffectNoSchedule}, foreign}
	if _, err := nodes.Update(t.Context(), node, metav1.UpdateOptions{}); err != nil {
		t.Fatal(err)
	}
	b.configure(map[string]string{"nodes.startup-taint": "on"})
	kubelettest.Eventually(t, 60*time.Second, "the taint goes", func() bool {
		taints := b.node().Spec.Taints
		return len(taints) == 1 && taints[0].Key == foreign.Key
	})
}

// modelLabels: each model that is usable and not obsolete has a label where that is wanted, and none where it is not any
// more (SC-014).
func (b *bench) modelLabels(t *testing.T) {
	labels := func() []string {
		var models []string
		for key := range b.node().Labels {
			if model, ours := strings.CutPrefix(key, api.NodeLabelModelPrefix); ours {
				models = append(models, model)
			}
		}
		slices.Sort(models)
		return models
	}
	b.observe(api.AcceleratorKVM, "Conroe", "Haswell", "Nehalem")
	b.configure(map[string]string{"cpu.labels": "models", "nodes.min-write-interval": "1s"})
	kubelettest.Eventually(t, 60*time.Second, "the labels", func() bool { return slices.Equal(labels(), []string{"Haswell", "Nehalem"}) })
	b.observe(api.AcceleratorKVM, "Haswell", "Penryn")
	kubelettest.Eventually(t, 60*time.Second, "other labels", func() bool { return slices.Equal(labels(), []string{"Haswell", "Penryn"}) })
	before := b.node().ResourceVersion
	b.configure(map[string]string{"nodes.min-write-interval": "1s"})
	kubelettest.Eventually(t, 60*time.Second, "no labels", func() bool { return len(labels()) == 0 })
	if b.node().ResourceVersion == before {
		t.Error("nothing was written")
	}
}
