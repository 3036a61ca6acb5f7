package main

import (
	"fmt"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"podvirt.dev/api"
)

// imports: a VM whose disk is being filled waits, is told how far it is, and goes on when the claim is bound; here the
// test is both provisioner and volume controller (SC-080, SC-083).
func (f *fleet) imports() {
	claims := f.client.CoreV1().PersistentVolumeClaims("shop")
	volumes := f.client.CoreV1().PersistentVolumes()
	class, size := "", corev1.ResourceList{corev1.ResourceStorage: resource.MustParse("10Gi")}
	claim, err := claims.Create(f.Context(), &corev1.PersistentVolumeClaim{
		ObjectMeta: metav1.ObjectMeta{Name: "filled", Annotations: map[string]string{
			"volume.kubernetes.io/selected-node": "old", api.KeyImportPhase: "Fetching", api.KeyImportProgress: "12.5%",
		}},
		Spec: corev1.PersistentVolumeClaimSpec{
			StorageClassName: &class, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce},
			Resources: corev1.VolumeResourceRequirements{Requests: size},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		f.Fatal(err)
	}
	pod := newPod("imports", map[string]string{api.KeyCPUModel: "Penryn"})
	pod.Spec.Tolerations = []corev1.Toleration{{Key: corev1.TaintNodeNotReady, Operator: corev1.TolerationOpExists}}
	pod.Spec.Volumes = append(pod.Spec.Volumes, corev1.Volume{Name: "root", VolumeSource: corev1.VolumeSource{
		PersistentVolumeClaim: &corev1.PersistentVolumeClaimVolumeSource{ClaimName: claim.Name},
	}})
	vm := &pod.Spec.Containers[0]
	vm.VolumeMounts = append(vm.VolumeMounts, corev1.VolumeMount{Name: "root", MountPath: api.PathDisks + "root"})
	if _, err := f.client.CoreV1().Pods("shop").Create(f.Context(), pod, metav1.CreateOptions{}); err != nil {
		f.Fatal(err)
	}
	told := func(percent string) {
		f.Helper()
		await(f.T, "the Pod says "+percent, func() bool {
			c := condition(getPod(f.T, f.client, "imports"))
			return c.Reason == "WaitingForVolumes" && c.Message == fmt.Sprintf("importing root: %s of 10Gi", percent)
		})
	}
	told("12.5%")
	claim.Annotations[api.KeyImportProgress] = "80.0%"
	if claim, err = claims.Update(f.Context(), claim, metav1.UpdateOptions{}); err != nil {
		f.Fatal(err)
	}
	told("80.0%")
	volume, err := volumes.Create(f.Context(), &corev1.PersistentVolume{
		ObjectMeta: metav1.ObjectMeta{Name: "filled", Annotations: map[string]string{"pv.kubernetes.io/bound-by-controller": "yes"}},
		Spec: corev1.PersistentVolumeSpec{
			Capacity: size, AccessModes: []corev1.PersistentVolumeAccessMode{corev1.ReadWriteOnce}, StorageClassName: class,
			PersistentVolumeSource: corev1.PersistentVolumeSource{CSI: &corev1.CSIPersistentVolumeSource{Driver: "test", VolumeHandle: "1"}},
			ClaimRef:               &corev1.ObjectReference{Kind: "PersistentVolumeClaim", Namespace: "shop", Name: claim.Name, UID: claim.UID},
			NodeAffinity: &corev1.VolumeNodeAffinity{Required: &corev1.NodeSelector{NodeSelectorTerms: []corev1.NodeSelectorTerm{{
				MatchFields: []corev1.NodeSelectorRequirement{{Key: "metadata.name", Operator: corev1.NodeSelectorOpIn, Values: []string{"old"}}},
			}}}},
		},
	}, metav1.CreateOptions{})
	if err != nil {
		f.Fatal(err)
	}
	volume.Status.Phase = corev1.VolumeBound
	if _, err := volumes.UpdateStatus(f.Context(), volume, metav1.UpdateOptions{}); err != nil {
		f.Fatal(err)
	}
	claim.Spec.VolumeName = volume.Name
	claim.Annotations["pv.kubernetes.io/bind-completed"] = "yes"
	claim.Annotations[api.KeyImportPhase] = "Succeeded"
	if claim, err = claims.Update(f.Context(), claim, metav1.UpdateOptions{}); err != nil {
		f.Fatal(err)
	}
	claim.Status.Phase = corev1.ClaimBound
	claim.Status.Capacity, claim.Status.AccessModes = size, claim.Spec.AccessModes
	begin := time.Now()
	if _, err := claims.UpdateStatus(f.Context(), claim, metav1.UpdateOptions{}); err != nil {
		f.Fatal(err)
	}
	await(f.T, "the VM is placed where its disk is", func() bool { return getPod(f.T, f.client, "imports").Spec.NodeName == "old" })
	f.Logf("bound %v after its claim", time.Since(begin))
	f.remove("imports")
}
