package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/yaml"
	"k8s.io/client-go/kubernetes"
	sigsyaml "sigs.k8s.io/yaml"
)

const (
	systemNamespace = "podvirt-system"
	overlay         = "test/cluster/manifests"
	localImages     = "localhost/podvirt/"
	// digestAnnotation on a workload's Pods rolls it out when an image of the same name has another content.
	digestAnnotation = "local-cluster/image-digests"
	installTimeout   = 5 * time.Minute
)

// Install brings the cluster up, loads the images of the cache, applies the local overlay and waits until all of it is ready.
func (c *Cluster) Install(ctx context.Context) error {
	if err := c.Up(ctx); err != nil {
		return err
	}
	images, err := c.CachedImages()
	if err != nil {
		return err
	}
	if err := c.LoadImages(ctx, images); err != nil {
		return err
	}
	kubectl, err := c.program("kubectl")
	if err != nil {
		return err
	}
	root, err := sourceRoot(ctx)
	if err != nil {
		return err
	}
	manifests, err := c.kubectl(ctx, kubectl, "", "kustomize", filepath.Join(root, overlay))
	if err != nil {
		return err
	}
	stamped, err := c.stampDigests(manifests)
	if err != nil {
		return err
	}
	if err := c.applyAll(ctx, kubectl, stamped); err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, installTimeout)
	defer cancel()
	client, err := c.Client()
	if err != nil {
		return err
	}
	return c.wait(wait, "podvirt", func() error { return rolledOut(wait, client) })
}

func (c *Cluster) program(name string) (string, error) {
	path := filepath.Join(c.Layout.Machine(c.Layout.Machines()[1].Name), "opt/podvirt-local/bin", name)
	return filepath.EvalSymlinks(path)
}

// applyAll applies twice where needed: objects of a kind that another object of the same manifests allows come second.
func (c *Cluster) applyAll(ctx context.Context, kubectl, manifests string) error {
	args := []string{"apply", "--server-side", "--force-conflicts", "--field-manager=podvirt", "-f", "-"}
	if _, err := c.kubectl(ctx, kubectl, manifests, args...); err == nil {
		return nil
	}
	_, err := c.kubectl(ctx, kubectl, manifests, args...)
	return err
}

// stampDigests writes the digests of its images into every workload.
func (c *Cluster) stampDigests(manifests string) (string, error) {
	decoder := yaml.NewYAMLOrJSONDecoder(bytes.NewBufferString(manifests), 4096)
	var out strings.Builder
	for {
		object := &unstructured.Unstructured{}
		err := decoder.Decode(object)
		if errors.Is(err, io.EOF) {
			return out.String(), nil
		}
		if err != nil {
			return "", err
		}
		if kind := object.GetKind(); kind == "DaemonSet" || kind == "Deployment" {
			if err := c.stamp(object); err != nil {
				return "", fmt.Errorf("%s %s: %w", kind, object.GetName(), err)
			}
		}
		data, err := sigsyaml.Marshal(object.Object)
		if err != nil {
			return "", err
		}
		out.WriteString("---\n")
		out.Write(data)
	}
}

func (c *Cluster) stamp(object *unstructured.Unstructured) error {
	var digests []string
	for _, list := range []string{"initContainers", "containers"} {
		containers, _, err := unstructured.NestedSlice(object.Object, "spec", "template", "spec", list)
		if err != nil {
			return err
		}
		for _, container := range containers {
			fields, ok := container.(map[string]any)
			image, isText := fields["image"].(string)
			if !ok || !isText || !strings.HasPrefix(image, localImages) {
				continue
			}
			digest, err := c.digest(strings.TrimSuffix(strings.TrimPrefix(image, localImages), ":dev"))
			if err != nil {
				return err
			}
			digests = append(digests, digest)
		}
	}
	return unstructured.SetNestedField(object.Object, strings.Join(digests, " "),
		"spec", "template", "metadata", "annotations", digestAnnotation)
}

// digest reads what the image builder wrote beside the archive.
func (c *Cluster) digest(image string) (string, error) {
	data, err := os.ReadFile(filepath.Join(c.Layout.Images(), image+".json"))
	if err != nil {
		return "", fmt.Errorf("image %s is not built (make images): %w", image, err)
	}
	var built struct {
		Digest string `json:"digest"`
	}
	if err := json.Unmarshal(data, &built); err != nil {
		return "", err
	}
	return built.Digest, nil
}

// rolledOut says which workload of podvirt is not complete yet.
func rolledOut(ctx context.Context, client kubernetes.Interface) error {
	sets, err := client.AppsV1().DaemonSets(systemNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, s := range sets.Items {
		want := s.Status.DesiredNumberScheduled
		if s.Status.ObservedGeneration < s.Generation || want == 0 || s.Status.UpdatedNumberScheduled != want || s.Status.NumberAvailable != want {
			return fmt.Errorf("daemon set %s: %d of %d nodes", s.Name, s.Status.NumberAvailable, want)
		}
	}
	deployments, err := client.AppsV1().Deployments(systemNamespace).List(ctx, metav1.ListOptions{})
	if err != nil {
		return err
	}
	for _, d := range deployments.Items {
		if !deploymentComplete(&d) {
			return fmt.Errorf("deployment %s: %d of %d replicas", d.Name, d.Status.AvailableReplicas, *d.Spec.Replicas)
		}
	}
	return nil
}

func deploymentComplete(d *appsv1.Deployment) bool {
	want := *d.Spec.Replicas
	return d.Status.ObservedGeneration >= d.Generation && d.Status.UpdatedReplicas == want &&
		d.Status.AvailableReplicas == want && d.Status.Replicas == want
}
