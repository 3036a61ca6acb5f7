package suite

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"podvirt.dev/api"
	"podvirt.dev/test/cluster/harness"
)

const (
	poolsKey  = "storage.pools"
	poolsRoot = "/var/lib/podvirt/pools/"
)

// nodePool is what the driver publishes of one pool (storage.md 2.7).
type nodePool struct {
	Name, FileSystem, Message                 string
	Ready, Reflink, DirectIO, SharesOS        bool
	Size, Free, Promised, Available, Reserved int64
}

// TestPools adds pools of every kind to running nodes and uses them (ST-001, ST-005, ST-008, ST-010, ST-019).
func TestPools(t *testing.T) {
	long(t, "test-storage")
	c := harness.Installed(t)
	one, two := c.Nodes[0], c.Nodes[1]
	mountPool(t, c, one, "t-ext4", "ext4", "2G")
	mountPool(t, c, one, "t-btrfs", "btrfs", "2G")
	mountPool(t, c, one, "t-tight", "xfs", "2G")
	mountPool(t, c, one, "t-both", "xfs", "800M")
	mountPool(t, c, two, "t-both", "xfs", "800M")
	afterwards(t, c, one, "rm -rf "+poolsRoot+"t-shared")
	restorePools(t, c)           // before the file systems are unmounted,
	ns := setUp(t, "guest-tiny") // and after the claims are gone
	for name, binding := range map[string]storagev1.VolumeBindingMode{
		"t-ext4": storagev1.VolumeBindingWaitForFirstConsumer, "t-btrfs": storagev1.VolumeBindingWaitForFirstConsumer,
		"t-tight": storagev1.VolumeBindingImmediate, "t-both": storagev1.VolumeBindingWaitForFirstConsumer,
		"t-shared": storagev1.VolumeBindingWaitForFirstConsumer,
	} {
		storageClass(t, ns, storagev1.StorageClass{
			ObjectMeta: metav1.ObjectMeta{Name: name}, Parameters: map[string]string{"pool": name}, VolumeBindingMode: &binding,
		})
	}
	storageClass(t, ns, storagev1.StorageClass{
		ObjectMeta: metav1.ObjectMeta{Name: "t-both-now"}, Parameters: map[string]string{"pool": "t-both"},
		VolumeBindingMode: new(storagev1.VolumeBindingImmediate),
	})
	onOne := "nodeSelector: {kubernetes.io/hostname: " + one + "}"
	addPools(t, c,
		"{name: t-ext4, path: "+poolsRoot+"t-ext4, "+onOne+"}", "{name: t-btrfs, path: "+poolsRoot+"t-btrfs, "+onOne+"}",
		"{name: t-tight, path: "+poolsRoot+"t-tight, reserve: '0', "+onOne+"}", "{name: t-both, path: "+poolsRoot+"t-both, reserve: '0'}",
		"{name: t-shared, path: "+poolsRoot+"t-shared, "+onOne+"}")

	t.Run("a pool serves ten seconds after the edit", func(t *testing.T) { servesSoon(t, ns, one) })
	t.Run("abilities are what another program finds", func(t *testing.T) { checkAbilities(t, ns, one, "t-ext4", "t-btrfs", "t-both") })
	t.Run("a VM boots from each kind", func(t *testing.T) { bootFromEach(t, ns, one) })
	t.Run("no more is promised than there is", func(t *testing.T) { fortyClaims(t, ns, one) })
	t.Run("a full node is left", func(t *testing.T) { moveOn(t, ns, one, two) })
	t.Run("a pool beside the OS", func(t *testing.T) { besideTheOS(t, ns, one) })
}

// mountPool mounts a new file system on a node until the test ends.
func mountPool(t *testing.T, c *harness.Cluster, node, name, fsType, size string) {
	t.Helper()
	image, dir := "/var/lib/podvirt/"+name+".img", poolsRoot+name
	c.OnNode(t, node, "sh", "-ec", fmt.Sprintf(
		"mkdir -p %[2]s && truncate -s %[3]s %[1]s && mkfs.%[4]s -q %[1]s && mount -o loop %[1]s %[2]s", image, dir, size, fsType))
	// The driver lets go of the pool a moment after its last volume.
	afterwards(t, c, node, fmt.Sprintf(
		"for i in $(seq 60); do umount %[2]s 2>/dev/null && break; sleep 1; done; rm -f %[1]s; rmdir %[2]s", image, dir))
}

// afterwards runs a script on a node when the test ends.
func afterwards(t *testing.T, c *harness.Cluster, node, script string) {
	t.Helper()
	pid := strconv.Itoa(c.NodePID(t, node))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(t.Context()), harness.Medium)
		defer cancel()
		if out, err := exec.CommandContext(ctx, "nsenter", "--target", pid, "--all", "--", "sh", "-c", script).CombinedOutput(); err != nil {
			t.Errorf("on %s: %s: %v: %s", node, script, err, out)
		}
	})
}

// restorePools makes storage.pools what it is now when the test ends.
func restorePools(t *testing.T, c *harness.Cluster) {
	t.Helper()
	before := readConfig(t, c).Data[poolsKey]
	t.Cleanup(func() {
		if err := writePools(context.WithoutCancel(t.Context()), c, before); err != nil {
			t.Error(err)
		}
	})
}

func readConfig(t *testing.T, c *harness.Cluster) *corev1.ConfigMap {
	t.Helper()
	config, err := c.Client.CoreV1().ConfigMaps(api.SystemNamespace).Get(t.Context(), api.ConfigName, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return config
}

func writePools(ctx context.Context, c *harness.Cluster, list string) error {
	patch, err := json.Marshal(map[string]any{"data": map[string]string{poolsKey: list}})
	if err != nil {
		return err
	}
	_, err = c.Client.CoreV1().ConfigMaps(api.SystemNamespace).Patch(ctx, api.ConfigName, types.MergePatchType, patch, metav1.PatchOptions{})
	return err
}

// addPools appends to storage.pools.
func addPools(t *testing.T, c *harness.Cluster, pools ...string) {
	t.Helper()
	list := strings.TrimRight(readConfig(t, c).Data[poolsKey], "\n") + "\n"
	for _, pool := range pools {
		list += "- " + pool + "\n"
	}
	if err := writePools(t.Context(), c, list); err != nil {
		t.Fatal(err)
	}
}

// servesSoon asks for a volume as the scheduler does, from the moment of the edit.
func servesSoon(t *testing.T, ns *harness.Namespace, node string) {
	begin := time.Now()
	ns.Apply(t, claim{name: "soon", class: "t-ext4", size: "64Mi", annotations: map[string]string{selectedNode: node}}.manifest(t))
	claims := ns.Client.CoreV1().PersistentVolumeClaims(ns.Name)
	harness.Eventually(t, harness.Short, "a volume of the new pool", func(ctx context.Context) error {
		found, err := claims.Get(ctx, "soon", metav1.GetOptions{})
		if err != nil || found.Status.Phase == corev1.ClaimBound {
			return err
		}
		if found.Annotations[selectedNode] == "" { // refused, since the pool was not there yet; the scheduler would try again
			patch := []byte(`{"metadata":{"annotations":{"` + selectedNode + `":"` + node + `"}}}`)
			_, err = claims.Patch(ctx, "soon", types.MergePatchType, patch, metav1.PatchOptions{})
		}
		return errors.Join(err, errors.New("pending"))
	})
	if took := time.Since(begin); took > 10*time.Second {
		t.Errorf("it took %v; want 10 s at most", took)
	}
}

// poolsOf returns what a node's driver publishes, once it has told of the wanted pools.
func poolsOf(t *testing.T, ns *harness.Namespace, node string, wanted ...string) map[string]nodePool {
	t.Helper()
	pools := map[string]nodePool{}
	harness.Eventually(t, harness.Short, "pools of "+node, func(context.Context) error {
		var published struct{ Pools []nodePool }
		if err := json.Unmarshal([]byte(ns.Node(t, node).Annotations[api.NodePools]), &published); err != nil {
			return err
		}
		for _, pool := range published.Pools {
			pools[pool.Name] = pool
		}
		for _, name := range wanted {
			if _, there := pools[name]; !there {
				return fmt.Errorf("%s is not published", name)
			}
		}
		return nil
	})
	return pools
}

// checkAbilities tries with cp, dd and stat what the driver found out with system calls.
func checkAbilities(t *testing.T, ns *harness.Namespace, node string, names ...string) {
	pools := poolsOf(t, ns, node, names...)
	for _, name := range names {
		out := ns.OnNode(t, node, "sh", "-c", "cd "+poolsRoot+name+` && head -c 4096 /dev/urandom >probe-a
			stat -f -c %T . | sed 's/ext2.ext3/ext4/'
			cp --reflink=always probe-a probe-b 2>/dev/null && echo true || echo false
			dd if=probe-a of=/dev/null bs=4096 iflag=direct status=none 2>/dev/null && echo true || echo false
			rm -f probe-a probe-b`)
		got := strings.Fields(out)
		want := []string{pools[name].FileSystem, strconv.FormatBool(pools[name].Reflink), strconv.FormatBool(pools[name].DirectIO)}
		if !slices.Equal(got, want) || !pools[name].Ready {
			t.Errorf("pool %s is published as %+v; stat, cp and dd find %q", name, pools[name], got)
		}
	}
}

// fortyClaims asks at once for forty volumes of which twenty-five fit.
func fortyClaims(t *testing.T, ns *harness.Namespace, node string) {
	pool := poolsOf(t, ns, node, "t-tight")["t-tight"]
	const fit, asked = 25, 40
	const tables = 16 << 20 // what the file system takes for the files themselves
	size := (pool.Available - tables) / fit / 4096 * 4096
	if pool.Available/size != fit {
		t.Fatalf("%d volumes of %d fit into %d; want %d", pool.Available/size, size, pool.Available, fit)
	}
	var all strings.Builder
	for i := range asked {
		all.WriteString("---\n" + claim{name: fmt.Sprint("tight", i), class: "t-tight", size: strconv.FormatInt(size, 10), block: true}.manifest(t))
	}
	ns.Apply(t, all.String())
	bound := func(ctx context.Context) (int, error) {
		list, err := ns.Client.CoreV1().PersistentVolumeClaims(ns.Name).List(ctx, metav1.ListOptions{})
		if err != nil {
			return 0, err
		}
		n := 0
		for _, c := range list.Items {
			if strings.HasPrefix(c.Name, "tight") && c.Status.Phase == corev1.ClaimBound {
				n++
			}
		}
		return n, nil
	}
	harness.Eventually(t, 2*harness.Medium, "25 claims bound", func(ctx context.Context) error {
		n, err := bound(ctx)
		if n != fit {
			return errors.Join(err, fmt.Errorf("%d are bound", n))
		}
		return err
	})
	free := ns.OnNode(t, node, "df", "-B1", "--output=avail", poolsRoot+"t-tight")
	metric := driverMetric(t, ns, node, `podvirt_pool_bytes{kind="free",pool="t-tight"}`)
	df, err := strconv.ParseInt(strings.Fields(free)[1], 10, 64)
	if diff := int64(metric) - df; err != nil || diff > 4096 || diff < -4096 {
		t.Errorf("free bytes: the driver says %.0f, df %d (%v); want them equal within a block", metric, df, err)
	}
	// A Pod whose claim asks for more than is left is told so by the scheduler.
	storageClass(t, ns, storagev1.StorageClass{ObjectMeta: metav1.ObjectMeta{Name: "t-tight-later"}, Parameters: map[string]string{"pool": "t-tight"}})
	ns.Apply(t, claim{name: "late", class: "t-tight-later", size: strconv.FormatInt(size, 10), block: true}.manifest(t))
	ns.Apply(t, userPod{name: "late", devices: []string{"late"}}.manifest(t))
	late := ns.WaitPod(t, "late", harness.Short, harness.Unschedulable)
	if message := harness.SchedulingMessage(late); !strings.Contains(message, "not have enough free storage") {
		t.Errorf("the Pod waits because of %q", message)
	}
	if n, err := bound(t.Context()); n != fit || err != nil {
		t.Errorf("a while later %d claims are bound (%v); want %d", n, err, fit)
	}
	deletePod(t, ns, "late")
}

// driverMetric reads one value of a node's driver.
func driverMetric(t *testing.T, ns *harness.Namespace, node, series string) float64 {
	t.Helper()
	pods, err := ns.Client.CoreV1().Pods(api.SystemNamespace).List(t.Context(), metav1.ListOptions{
		LabelSelector: "app.kubernetes.io/name=podvirt-csi-hostpath", FieldSelector: "spec.nodeName=" + node,
	})
	if err != nil || len(pods.Items) == 0 {
		t.Fatalf("driver of %s: %v", node, err)
	}
	body := mustCurl(t, ns, "--insecure", "https://"+hostOf(pods.Items[0].Status.PodIP)+":9443/metrics")
	for line := range strings.Lines(body) {
		if rest, found := strings.CutPrefix(line, series+" "); found {
			value, err := strconv.ParseFloat(strings.TrimSpace(rest), 64)
			if err != nil {
				t.Fatal(err)
			}
			return value
		}
	}
	t.Fatalf("no %s in the metrics of %s", series, node)
	return 0
}

func hostOf(ip string) string {
	if strings.Contains(ip, ":") {
		return "[" + ip + "]"
	}
	return ip
}

// moveOn: Pods that exclude each other get their volumes where they run, a node that is full is left for another, and
// an Immediate claim is taken by a node that has room (ST-008).
func moveOn(t *testing.T, ns *harness.Namespace, one, two string) {
	poolsOf(t, ns, two, "t-both")
	apart := &corev1.Affinity{PodAntiAffinity: &corev1.PodAntiAffinity{RequiredDuringSchedulingIgnoredDuringExecution: []corev1.PodAffinityTerm{{
		TopologyKey: corev1.LabelHostname, LabelSelector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": "apart"}},
	}}}}
	for _, name := range []string{"left", "right"} {
		ns.Apply(t, claim{name: name + "-both", class: "t-both", size: "64Mi", block: true}.manifest(t))
		ns.Apply(t, claim{name: name + "-default", size: "64Mi"}.manifest(t))
		ns.Apply(t, userPod{
			name: name, volumes: []string{name + "-default"}, devices: []string{name + "-both"}, affinity: apart, labels: map[string]string{"app": "apart"},
		}.manifest(t))
	}
	nodes := map[string]bool{}
	for _, name := range []string{"left", "right"} {
		pod := ns.WaitPod(t, name, harness.Medium, harness.Ready)
		nodes[pod.Spec.NodeName] = true
		for _, c := range []string{name + "-both", name + "-default"} {
			if where := nodeOf(t, boundVolume(t, ns, c)); where != pod.Spec.NodeName {
				t.Errorf("claim %s is on %s, its Pod on %s", c, where, pod.Spec.NodeName)
			}
		}
	}
	if len(nodes) != 2 {
		t.Errorf("two Pods that exclude each other are on %v", nodes)
	}

	ns.OnNode(t, one, "fallocate", "-l", "500M", poolsRoot+"t-both/foreign") // the scheduler does not know yet
	ns.Apply(t, claim{name: "moved", class: "t-both", size: "256Mi", block: true}.manifest(t))
	prefer := &corev1.Affinity{NodeAffinity: &corev1.NodeAffinity{PreferredDuringSchedulingIgnoredDuringExecution: []corev1.PreferredSchedulingTerm{{
		Weight: 100, Preference: corev1.NodeSelectorTerm{MatchExpressions: []corev1.NodeSelectorRequirement{
			{Key: corev1.LabelHostname, Operator: corev1.NodeSelectorOpIn, Values: []string{one}},
		}},
	}}}}
	ns.Apply(t, userPod{name: "moved", devices: []string{"moved"}, affinity: prefer}.manifest(t))
	if pod := ns.WaitPod(t, "moved", harness.Medium, harness.Ready); pod.Spec.NodeName != two {
		t.Errorf("the Pod runs on %s, which is full", pod.Spec.NodeName)
	}
	ns.Apply(t, claim{name: "now", class: "t-both-now", size: "256Mi", block: true}.manifest(t))
	if where := nodeOf(t, boundVolume(t, ns, "now")); where != two {
		t.Errorf("the Immediate claim is on %s, which is full", where)
	}
	for _, name := range []string{"left", "right", "moved"} {
		deletePod(t, ns, name)
	}
	ns.OnNode(t, one, "rm", poolsRoot+"t-both/foreign")
}

// besideTheOS: no volume on the file system of the OS unless allowed, and then never so much that the kubelet evicts.
func besideTheOS(t *testing.T, ns *harness.Namespace, node string) {
	dir := poolsRoot + "t-shared"
	ns.OnNode(t, node, "mkdir", "-p", dir)
	harness.Eventually(t, harness.Short, "the pool is refused", func(context.Context) error {
		if pool := poolsOf(t, ns, node, "t-shared")["t-shared"]; pool.Ready || !pool.SharesOS {
			return fmt.Errorf("pool = %+v", pool)
		}
		return nil
	})
	if value := driverMetric(t, ns, node, `podvirt_pool_shares_os{pool="t-shared"}`); value != 1 {
		t.Errorf("podvirt_pool_shares_os = %v; want 1", value)
	}
	ns.Apply(t, claim{name: "shared", class: "t-shared", size: "64Mi", annotations: map[string]string{selectedNode: node}}.manifest(t))
	waitEvent(t, ns, "shared", "is on the file system of the OS")
	events, err := ns.Client.CoreV1().Events(metav1.NamespaceDefault).List(t.Context(), metav1.ListOptions{
		FieldSelector: "involvedObject.name=" + node + ",reason=PoolSharesOS",
	})
	if err != nil || len(events.Items) == 0 {
		t.Errorf("no event PoolSharesOS on %s (%v)", node, err)
	}
	list := strings.Replace(readConfig(t, ns.Cluster).Data[poolsKey], "t-shared, nodeSelector", "t-shared, allowShared: true, nodeSelector", 1)
	if err := writePools(t.Context(), ns.Cluster, list); err != nil {
		t.Fatal(err)
	}
	var pool nodePool
	harness.Eventually(t, harness.Short, "the pool is allowed", func(context.Context) error {
		if pool = poolsOf(t, ns, node, "t-shared")["t-shared"]; !pool.Ready {
			return fmt.Errorf("pool = %+v", pool)
		}
		return nil
	})
	fillShared(t, ns, node, pool)
}

// fillShared takes all that the pool gives, for a moment.
func fillShared(t *testing.T, ns *harness.Namespace, node string, pool nodePool) {
	const meanwhile = 1 << 30 // what others write to the same file system between the measurement and the claim
	size := pool.Available - meanwhile
	if size < 16<<20 {
		t.Logf("the OS has less than the reserve left: the pool gives nothing, %+v", pool)
		return
	}
	ns.Apply(t, claim{name: "full", class: "t-shared", size: strconv.FormatInt(size, 10), block: true, annotations: map[string]string{
		selectedNode: node, api.Prefix + "preallocation": "falloc",
	}}.manifest(t))
	boundVolume(t, ns, "full")
	var blocks, free float64
	if _, err := fmt.Sscan(ns.OnNode(t, node, "stat", "-f", "-c", "%b %a", poolsRoot+"t-shared"), &blocks, &free); err != nil {
		t.Fatal(err)
	}
	if share := 100 * free / blocks; share < 15 {
		t.Errorf("the OS has %.1f %% left; want 15 at least", share)
	}
	for _, condition := range ns.Node(t, node).Status.Conditions {
		if condition.Type == corev1.NodeDiskPressure && condition.Status != corev1.ConditionFalse {
			t.Errorf("kubelet reports %+v", condition)
		}
	}
	if err := ns.Client.CoreV1().PersistentVolumeClaims(ns.Name).Delete(t.Context(), "full", metav1.DeleteOptions{}); err != nil {
		t.Fatal(err)
	}
}
