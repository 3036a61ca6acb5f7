package program

import (
	"cmp"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	eventsv1 "k8s.io/api/events/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
	"podvirt.dev/controller/internal/events"
	"podvirt.dev/internal/apitest"
	"podvirt.dev/internal/cli"
	"podvirt.dev/internal/transcript"
	"podvirt.dev/internal/vmstatus"
)

const (
	repository = "../../.."
	account    = "podvirt-controller"
	space      = "shop"
	patient    = 60 * time.Second // for machines that are slow and busy
)

// bench is an API server with our manifests, and launchers.
type bench struct {
	t      *testing.T
	server *apitest.Server
	config string // kubeconfig of the controller's account
	port   int    // of every launcher, each with an address of its own
	vms    int
}

func newBench(t *testing.T) *bench {
	t.Helper()
	server := apitest.Start(t)
	server.Make(t, space, "default")
	server.Make(t, api.SystemNamespace, account)
	server.Apply(t, api.SystemNamespace,
		filepath.Join(repository, "manifests/controller/rbac.yaml"), filepath.Join(repository, "manifests/controller/policy.yaml"))
	port, err := strconv.Atoi(apitest.FreePort(t))
	if err != nil {
		t.Fatal(err)
	}
	_, err = server.Client.CoreV1().ConfigMaps(api.SystemNamespace).Create(t.Context(), &corev1.ConfigMap{
		ObjectMeta: metav1.ObjectMeta{Name: api.ConfigName},
		Data:       map[string]string{"launcher.port-base": strconv.Itoa(port + api.PortBase - api.PortStatus)},
	}, metav1.CreateOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return &bench{t: t, server: server, port: port, config: server.Kubeconfig(t, server.Account(t, api.SystemNamespace, account))}
}

// instance is a running controller.
type instance struct {
	metrics string
	stop    func()
}

// start runs the program inside the test process; its log goes to the test's log.
func (b *bench) start(identity string) *instance {
	b.t.Helper()
	i := &instance{metrics: "127.0.0.1:" + apitest.FreePort(b.t)}
	o, err := parse([]string{
		"--identity=" + identity, "--kubeconfig=" + b.config, "--metrics=" + i.metrics, "--period=100ms", "-v=2",
	}, io.Discard)
	if err != nil {
		b.t.Fatal(err)
	}
	o.patience, o.silence = time.Second, 3*time.Second // not that of a machine that is busy
	ctx, cancel := context.WithCancel(b.t.Context())
	var log transcript.Transcript
	done := make(chan error, 1)
	go func() { done <- serve(cli.WithLogger(ctx, &log, o.verbosity), o) }()
	i.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			b.t.Errorf("%s: %v", identity, err)
		}
		b.t.Logf("log of %s:\n%s", identity, log.String())
	})
	b.t.Cleanup(i.stop)
	return i
}

func (i *instance) get(path string) (int, string) {
	client := &http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	response, err := client.Get("https://" + i.metrics + path)
	if err != nil {
		return 0, err.Error()
	}
	defer response.Body.Close()
	body, _ := io.ReadAll(response.Body)
	return response.StatusCode, string(body)
}

// vm is a Pod and the launcher that answers for it.
type vm struct {
	b    *bench
	name string
	ip   string

	mu     sync.Mutex
	status vmstatus.Status
	asked  int
	server *http.Server
}

// newVM makes a Pod whose container runs, and a launcher that answers.
func (b *bench) newVM(name string, change func(*corev1.Pod)) *vm {
	b.t.Helper()
	b.vms++
	v := &vm{b: b, name: name, ip: fmt.Sprintf("127.0.1.%d", b.vms), status: vmstatus.Status{
		Name: name, Namespace: space, State: api.StateRunning, VCPUs: 2, MemoryMiB: 256, Launcher: "v1", Run: "run1",
		NICs: []vmstatus.NIC{{Name: "default", Pod: "eth0", MAC: "02:00:00:00:00:01", IPs: []string{"10.0.2.2/24"}, Source: "dhcp"}},
		Conditions: []vmstatus.Condition{
			{Type: api.ConditionGuestRunning, Status: "True", Reason: "Running"}, {Type: api.ConditionPaused, Status: "False"},
			{Type: "Ready", Status: "True", Reason: "Forged"},
		},
	}}
	v.listen()
	pod := &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: space, Labels: map[string]string{api.LabelVM: name}},
		Spec:       corev1.PodSpec{NodeName: "n1", Containers: []corev1.Container{{Name: api.ContainerName, Image: "none"}}},
	}
	if change != nil {
		change(pod)
	}
	if _, err := b.server.Client.CoreV1().Pods(space).Create(b.t.Context(), pod, metav1.CreateOptions{}); err != nil {
		b.t.Fatal(err)
	}
	v.container(corev1.ContainerState{Running: &corev1.ContainerStateRunning{StartedAt: metav1.Now()}})
	return v
}

// listen answers as a launcher does.
func (v *vm) listen() {
	v.b.t.Helper()
	listener, err := (&net.ListenConfig{}).Listen(v.b.t.Context(), "tcp", net.JoinHostPort(v.ip, strconv.Itoa(v.b.port)))
	if err != nil {
		v.b.t.Fatal(err)
	}
	v.server = &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/status" {
			http.NotFound(w, r)
			return
		}
		v.mu.Lock()
		defer v.mu.Unlock()
		v.asked++
		_ = json.NewEncoder(w).Encode(v.status)
	})}
	server := v.server
	go func() { _ = server.Serve(listener) }()
	v.b.t.Cleanup(func() { _ = server.Close() })
}

// container writes what the kubelet says of the container.
func (v *vm) container(state corev1.ContainerState) {
	v.b.t.Helper()
	pods := v.b.server.Client.CoreV1().Pods(space)
	patch, err := json.Marshal(map[string]any{"status": map[string]any{
		"podIP": v.ip, "podIPs": []any{map[string]string{"ip": v.ip}},
		"containerStatuses": []corev1.ContainerStatus{{Name: api.ContainerName, Image: "none", ImageID: "none", State: state}},
	}})
	if err != nil {
		v.b.t.Fatal(err)
	}
	if _, err := pods.Patch(v.b.t.Context(), v.name, "application/merge-patch+json", patch, metav1.PatchOptions{}, "status"); err != nil {
		v.b.t.Fatal(err)
	}
}

// ends writes that the container has ended with a message.
func (v *vm) ends(code int32, message string) {
	v.b.t.Helper()
	v.container(corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{
		ExitCode: code, Message: message, FinishedAt: metav1.Now(), ContainerID: "containerd://" + v.name,
	}})
}

// set changes what the launcher answers.
func (v *vm) set(change func(*vmstatus.Status)) {
	v.mu.Lock()
	defer v.mu.Unlock()
	change(&v.status)
}

// happens adds news.
func (v *vm) happens(reason, message string) {
	v.set(func(s *vmstatus.Status) {
		now := time.Now()
		seq := int64(1)
		if n := len(s.News); n > 0 {
			seq = s.News[n-1].Seq + 1
		}
		s.News = append(s.News, vmstatus.News{Seq: seq, Count: 1, First: now, Last: now, Reason: reason, Message: message})
	})
}

// again counts the last piece of news once more.
func (v *vm) again() {
	v.set(func(s *vmstatus.Status) {
		last := &s.News[len(s.News)-1]
		last.Count, last.Last = last.Count+1, time.Now()
	})
}

func (v *vm) pod(t *testing.T) *corev1.Pod {
	t.Helper()
	pod, err := v.b.server.Client.CoreV1().Pods(space).Get(t.Context(), v.name, metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	return pod
}

// condition is status/reason/message of a condition of the Pod; empty where it has none of the type.
func (v *vm) condition(t *testing.T, kind string) string {
	t.Helper()
	for _, c := range v.pod(t).Status.Conditions {
		if string(c.Type) == kind {
			return fmt.Sprintf("%s/%s/%s", c.Status, c.Reason, c.Message)
		}
	}
	return ""
}

// events are those of the controller about an object, in the order in which things happened: "Warning IOError x3: text".
func (b *bench) events(t *testing.T, name string) []string {
	t.Helper()
	list, err := b.server.Client.EventsV1().Events(space).List(t.Context(), metav1.ListOptions{})
	if err != nil {
		t.Fatal(err)
	}
	found := slices.DeleteFunc(list.Items, func(e eventsv1.Event) bool {
		return e.Regarding.Name != name || e.ReportingController != events.ReportingController
	})
	slices.SortFunc(found, func(a, b eventsv1.Event) int {
		return cmp.Or(a.EventTime.Compare(b.EventTime.Time), len(a.Name)-len(b.Name), strings.Compare(a.Name, b.Name))
	})
	var lines []string
	for _, e := range found {
		line := e.Type + " " + e.Reason
		if e.Series != nil {
			line += fmt.Sprintf(" x%d", e.Series.Count)
		}
		lines = append(lines, line+": "+e.Note)
	}
	return lines
}

// eventually waits until a text is as wanted.
func eventually[T any](t *testing.T, what string, want T, equal func(a, b T) bool, get func() T) {
	t.Helper()
	begin := time.Now()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		got := get()
		if equal(got, want) {
			return
		}
		if time.Since(begin) > patient {
			t.Fatalf("%s: not within %v:\n%v\nwant\n%v", what, patient, got, want)
		}
		<-tick.C
	}
}

func (b *bench) expectEvents(t *testing.T, name string, want ...string) {
	t.Helper()
	eventually(t, "events of "+name, want, slices.Equal, func() []string { return b.events(t, name) })
}

func (v *vm) expectCondition(t *testing.T, kind, want string) {
	t.Helper()
	equal := func(a, b string) bool {
		return a == b || strings.HasSuffix(b, "*") && strings.HasPrefix(a, strings.TrimSuffix(b, "*"))
	}
	eventually(t, kind+" of "+v.name, want, equal, func() string { return v.condition(t, kind) })
}

func (b *bench) waitAsked(t *testing.T, v *vm, more int) {
	t.Helper()
	count := func() int { v.mu.Lock(); defer v.mu.Unlock(); return v.asked }
	eventually(t, v.name+" is asked", count()+more, func(got, want int) bool { return got >= want }, count)
}

func streams(out io.Writer) cli.Streams { return cli.Streams{Out: out, Err: out} }
