package cluster

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/fake"
	"k8s.io/client-go/tools/record"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/driver"
	"podvirt.dev/csi-hostpath/internal/volume"
)

// bound is a claim of 1Gi and its volume on a node; the claim asks for more.
func bound(name, driverName, node, wants string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume) {
	claim := &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: "shop"},
		Spec: corev1.PersistentVolumeClaimSpec{VolumeName: "pv-" + name, Resources: corev1.VolumeResourceRequirements{
			Requests: corev1.ResourceList{corev1.ResourceStorage: resource.MustParse(wants)},
		}},
		Status: corev1.PersistentVolumeClaimStatus{Phase: corev1.ClaimBound, Capacity: corev1.ResourceList{
			corev1.ResourceStorage: resource.MustParse("1Gi"),
		}},
	}
	pv := &corev1.PersistentVolume{ObjectMeta: metav1.ObjectMeta{Name: "pv-" + name}, Spec: corev1.PersistentVolumeSpec{
		PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: driverName, VolumeHandle: "h-" + name}},
		NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
			MatchExpressions: []corev1.NodeSelectorRequirement{{Key: driver.TopologyKey, Operator: corev1.NodeSelectorOpIn, Values: []string{node}}},
		}}}},
	}}
	return claim, pv
}

// TestResize: volumes of this node grow to what their claims ask for, those of others are left alone, and a failure is
// told on the claim.
func TestResize(t *testing.T) {
	mine, minePV := bound("mine", api.CSIDriver, "n1", "3Gi")
	other, otherPV := bound("other", api.CSIDriver, "n2", "3Gi")
	foreign, foreignPV := bound("foreign", "csi.example.org", "n1", "3Gi")
	enough, enoughPV := bound("enough", api.CSIDriver, "n1", "1Gi")
	full, fullPV := bound("full", api.CSIDriver, "n1", "100Ti")
	huge, hugePV := bound("huge", api.CSIDriver, "n1", "9Pi")
	kube := fake.NewClientset(mine, minePV, other, otherPV, foreign, foreignPV, enough, enoughPV, full, fullPV, huge, hugePV)
	client := newClient(Options{Node: "n1"}, kube)
	events := record.NewFakeRecorder(100)
	client.events = events
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan string, 100)
	done := make(chan error, 1)
	refuse := map[string]error{"h-full": volume.ErrNoSpace, "h-huge": fmt.Errorf("%w: too much", volume.ErrTooLarge)}
	go func() {
		done <- client.Follow(ctx, func(_ context.Context, handle string, size int64) (int64, error) {
			asked <- fmt.Sprint(handle, " ", size)
			return size, refuse[handle]
		}, func(context.Context, func(volume.Claim) driver.ClaimState) {})
	}()
	want := map[string]string{"NoSpace": "not enough room", "DiskResized": "3Gi", "VolumeResizeFailed": "size out of range"}
	for len(want) > 0 {
		event := receive(t, events.Events)
		for reason, text := range want {
			if strings.Contains(event, reason) && strings.Contains(event, text) {
				delete(want, reason)
			}
		}
	}
	cancel()
	if err := <-done; err != nil && !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	close(asked)
	for request := range asked {
		if handle, size, _ := strings.Cut(request, " "); refuse[handle] == nil && (handle != "h-mine" || size != "3221225472") {
			t.Errorf("asked for %s", request)
		}
	}
	checkGrown(t, kube)
	refused, err := kube.CoreV1().PersistentVolumeClaims("shop").Get(t.Context(), "huge", metav1.GetOptions{})
	if err != nil || refused.Status.AllocatedResourceStatuses[corev1.ResourceStorage] != corev1.PersistentVolumeClaimControllerResizeInfeasible {
		t.Errorf("status of a claim that cannot have it: %+v, %v", refused.Status, err)
	}
}

func checkGrown(t *testing.T, kube *fake.Clientset) {
	t.Helper()
	claim, err := kube.CoreV1().PersistentVolumeClaims("shop").Get(t.Context(), "mine", metav1.GetOptions{})
	if err != nil {
		t.Fatal(err)
	}
	has := claim.Status.Capacity[corev1.ResourceStorage]
	if has.String() != "3Gi" || len(claim.Status.Conditions) != 0 || len(claim.Status.AllocatedResourceStatuses) != 0 {
		t.Errorf("status of the claim: %+v", claim.Status)
	}
	pv, err := kube.CoreV1().PersistentVolumes().Get(t.Context(), "pv-mine", metav1.GetOptions{})
	if has := pv.Spec.Capacity[corev1.ResourceStorage]; err != nil || has.String() != "3Gi" {
		t.Errorf("capacity of the volume: %s, %v", &has, err)
	}
}
