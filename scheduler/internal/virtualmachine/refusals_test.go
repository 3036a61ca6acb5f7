package virtualmachine

import (
	"testing"
	"testing/synctest"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// refused is a Pod that a kubelet has ended before it began.
func refused(pod *corev1.Pod, node, reason string) *corev1.Pod {
	pod.Spec.NodeName = node
	pod.Status.Phase, pod.Status.Reason = corev1.PodFailed, reason
	return pod
}

// TestRefusedShapesAreAvoided: five minutes, then ten, up to an hour, and only this shape on this Node (SC-054).
func TestRefusedShapesAreAvoided(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		node, other := testNode(t, "n", nil), testNode(t, "other", nil)
		pl := testPlugin(node, other)
		expired := 0
		pl.refusals.expired = func() { expired++ }
		handler := pl.refusalHandler(t.Context())
		fits := func(pod *corev1.Pod) bool { return len(place(t, pl, pod, node)) == 0 }
		odd := testPod(map[string]string{"cpu-topology": "cores=3"})

		first := testPod(nil)
		first.UID = "first"
		handler.OnUpdate(nil, refused(first, "n", "UnexpectedAdmissionError"))
		handler.OnUpdate(nil, first) // another change of the same Pod
		if fits(testPod(nil)) || !fits(odd) || len(place(t, pl, testPod(nil), other)) != 0 {
			t.Errorf("after a refusal: this shape fits: %v, another: %v", fits(testPod(nil)), fits(odd))
		}
		<-time.After(5 * time.Minute)
		synctest.Wait()
		if !fits(testPod(nil)) || expired != 1 {
			t.Errorf("after five minutes: fits: %v, woken %d times; want true, once", fits(testPod(nil)), expired)
		}
		for i, wait := range []time.Duration{10 * time.Minute, 20 * time.Minute, 40 * time.Minute, time.Hour, time.Hour} {
			again := testPod(nil)
			again.UID = first.UID + "x"
			first = again
			handler.OnUpdate(nil, refused(again, "n", "OutOfcpu"))
			<-time.After(wait - time.Second)
			if fits(testPod(nil)) {
				t.Errorf("refusal %d counts less than %v", i+2, wait)
			}
			<-time.After(time.Second)
			if !fits(testPod(nil)) {
				t.Errorf("refusal %d counts more than %v", i+2, wait)
			}
			handler.OnDelete(again)
		}
		for _, harmless := range []string{"Evicted", "Error", ""} {
			pod := testPod(nil)
			pod.UID = "harmless"
			handler.OnUpdate(nil, refused(pod, "n", harmless))
			if !fits(testPod(nil)) {
				t.Errorf("a Pod that failed by %q counts as refused", harmless)
			}
		}
	})
}
