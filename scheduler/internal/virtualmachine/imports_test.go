package virtualmachine

import (
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	corelisters "k8s.io/client-go/listers/core/v1"
	"k8s.io/client-go/tools/cache"
	"k8s.io/klog/v2"
	fwk "k8s.io/kube-scheduler/framework"

	"podvirt.dev/api"
)

// diskPod is a VM with a claim for its disk root.
func diskPod() *corev1.Pod {
	pod := testPod(nil)
	pod.Spec.Volumes = []corev1.Volume{{Name: "root", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: "db1-root"},
	}}}
	return pod
}

func importing(phase, percent string, annotations map[string]string) *corev1.PersistentVolumeClaim {
	claim := &corev1.PersistentVolumeClaim{ObjectMeta: metav1.ObjectMeta{Name: "db1-root", Namespace: "shop", Annotations: annotations}}
	if claim.Annotations == nil {
		claim.Annotations = map[string]string{selectedNode: "n"}
	}
	claim.Annotations[api.KeyImportPhase], claim.Annotations[api.KeyImportProgress] = phase, percent
	claim.Spec.Resources.Requests = corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")}
	return claim
}

// TestImportGate: a VM waits outside the queue while its disk is filled on a node that was chosen, and is told how far it
// is; without a node it is what chooses one (SC-080, SC-081).
func TestImportGate(t *testing.T) {
	bound := importing("Fetching", "99.0%", nil)
	bound.Status.Phase = corev1.ClaimBound
	failed := importing("Failed", "", nil)
	failed.Annotations[api.KeyImportMessage] = "404 Not Found"
	for name, tt := range map[string]struct {
		claim *corev1.PersistentVolumeClaim // nil: there is none
		want  string                        // "": it may be scheduled
	}{
		"no claim yet":  {nil, ""},
		"no import":     {importing("", "", nil), ""},
		"half of it":    {importing("Fetching", "37.0%", nil), "importing root: 37.0% of 10Gi"},
		"nobody chose":  {importing("Fetching", "0.0%", map[string]string{}), ""},
		"bound":         {bound, ""},
		"succeeded":     {importing("Succeeded", "100.0%", nil), ""},
		"it has failed": {failed, "import of root failed: 404 Not Found"},
	} {
		t.Run(name, func(t *testing.T) {
			pl := testPlugin()
			claims, pods := cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{}), cache.NewIndexer(cache.MetaNamespaceKeyFunc, cache.Indexers{})
			pl.imports = &imports{claims: corelisters.NewPersistentVolumeClaimLister(claims), pods: corelisters.NewPodLister(pods), interval: 10 * time.Second}
			pod := diskPod()
			if err := pods.Add(pod); err != nil {
				t.Fatal(err)
			}
			if tt.claim != nil {
				if err := claims.Add(tt.claim); err != nil {
					t.Fatal(err)
				}
			}
			status := pl.PreEnqueue(t.Context(), pod)
			if got := status.Message(); status.IsSuccess() != (tt.want == "") || got != tt.want {
				t.Errorf("%v %q; want %q", status.Code(), got, tt.want)
			}
			now := time.Now()
			told := pl.imports.news(now)
			if tt.want != "" && told[pod] != tt.want {
				t.Errorf("told %q; want %q", told[pod], tt.want)
			}
			if tt.want == "" {
				return
			}
			pod.Status.Conditions = []corev1.PodCondition{{Type: corev1.PodScheduled, Reason: reasonVolumes, Message: tt.want}}
			if again := pl.imports.news(now); len(again) != 0 {
				t.Errorf("the same is told twice: %v", again)
			}
			pod.Status.Conditions[0].Message, pod.Status.Conditions[0].LastProbeTime = "importing root: 36.0% of 10Gi", metav1.NewTime(now.Add(-time.Second))
			if again := pl.imports.news(now); len(again) != 0 {
				t.Errorf("told again a second after another scheduler has: %v", again)
			}
		})
	}
	if status := testPlugin().PreEnqueue(t.Context(), &corev1.Pod{}); !status.IsSuccess() {
		t.Errorf("an ordinary Pod: %v", status)
	}
}

// TestFilledClaimsWake: only the end of its own import wakes a VM (SC-083).
func TestFilledClaimsWake(t *testing.T) {
	bound := importing("Succeeded", "100.0%", nil)
	bound.Status.Phase = corev1.ClaimBound
	other := bound.DeepCopy()
	other.Name = "other"
	got := map[string]fwk.QueueingHint{}
	for name, change := range map[string][2]*corev1.PersistentVolumeClaim{
		"progress":         {importing("Fetching", "1.0%", nil), importing("Fetching", "2.0%", nil)},
		"bound":            {importing("Fetching", "99.0%", nil), bound},
		"the node is gone": {importing("Fetching", "1.0%", nil), importing("Failed", "", map[string]string{})},
		"of another VM":    {importing("Fetching", "99.0%", nil), other},
		"no import":        {importing("", "", nil), importing("", "", nil)},
	} {
		hint, err := testPlugin().isSchedulableAfterClaimChange(klog.Background(), diskPod(), change[0], change[1])
		if err != nil {
			t.Fatal(err)
		}
		got[name] = hint
	}
	want := map[string]fwk.QueueingHint{
		"progress": fwk.QueueSkip, "bound": fwk.Queue, "the node is gone": fwk.Queue, "of another VM": fwk.QueueSkip, "no import": fwk.QueueSkip,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("(-want,+got):\n%s", diff)
	}
}
