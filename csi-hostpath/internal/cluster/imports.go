package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"net/netip"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	listers "k8s.io/client-go/listers/core/v1"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/driver"
	"podvirt.dev/csi-hostpath/internal/importer"
	"podvirt.dev/csi-hostpath/internal/volume"
)

var _ driver.Imports = (*Client)(nil)

// rangesFor is how long the ranges of the cluster are taken as known: they change when nodes come.
const rangesFor = time.Minute

// stateTimeout bounds the writing of one state: an import does not wait for the API server.
const stateTimeout = 10 * time.Second

// ImportObjects reads the ConfigMap and the Secret that a claim names, with the driver's own rights: a Secret only where
// a RoleBinding of its namespace lets it (ST-049).
func (c *Client) ImportObjects(ctx context.Context, claim volume.Claim, asked *api.Import) (importer.Objects, error) {
	var objects importer.Objects
	var err error
	if shared := c.sharedCA(); shared != "" {
		if objects.Shared, err = c.certificates(ctx, "data.storage.import.ca", api.SystemNamespace, shared); err != nil {
			return objects, err
		}
	}
	if asked.CA != "" {
		if objects.CA, err = c.certificates(ctx, api.KeyImportCA, claim.Namespace, asked.CA); err != nil {
			return objects, err
		}
	}
	if asked.Secret != "" {
		if objects.Secret, err = c.secret(ctx, api.KeyImportSecret, claim.Namespace, asked.Secret); err != nil {
			return objects, err
		}
		if text := objects.Check(); text != "" {
			return objects, fmt.Errorf("%s: %q: %s", api.KeyImportSecret, asked.Secret, text)
		}
	}
	for _, name := range asked.HeaderSecrets {
		data, err := c.secret(ctx, api.KeyImportHeadersSecret, claim.Namespace, name)
		if err != nil {
			return objects, err
		}
		lines, wrong := importer.Headers(data)
		if wrong != "" {
			return objects, fmt.Errorf("%s: %q: %s", api.KeyImportHeadersSecret, name, wrong)
		}
		objects.Headers = append(objects.Headers, lines...)
	}
	return objects, nil
}

// sharedCA is the ConfigMap with CAs for everybody.
func (c *Client) sharedCA() string {
	c.imports.mu.Lock()
	defer c.imports.mu.Unlock()
	return c.imports.settings.CA
}

// certificates reads a ConfigMap that a key names.
func (c *Client) certificates(ctx context.Context, key, namespace, name string) (map[string]string, error) {
	found, err := c.kube.CoreV1().ConfigMaps(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, objectError(key, name, "ConfigMap "+namespace+"/"+name, err)
	}
	data := maps.Clone(found.Data)
	if data == nil {
		data = map[string]string{}
	}
	if text := (importer.Objects{CA: data}).Check(); text != "" {
		return nil, fmt.Errorf("%s: %q: %s", key, name, text)
	}
	return data, nil
}

// secret reads a Secret that a key of a claim names.
func (c *Client) secret(ctx context.Context, key, namespace, name string) (map[string][]byte, error) {
	full := namespace + "/" + name
	found, err := c.kube.CoreV1().Secrets(namespace).Get(ctx, name, metav1.GetOptions{})
	if apierrors.IsForbidden(err) {
		return nil, fmt.Errorf("%s: %q: no permission to read Secret %s; grant it with: kubectl vm import grant %s", key, name, full, name)
	}
	if err != nil {
		return nil, objectError(key, name, "Secret "+full, err)
	}
	data := maps.Clone(found.Data)
	if data == nil {
		data = map[string][]byte{}
	}
	return data, nil
}

func objectError(key, value, object string, err error) error {
	if apierrors.IsNotFound(err) {
		return fmt.Errorf("%s: %q: %s not found", key, value, object)
	}
	return fmt.Errorf("%s: %q: reading %s: %w", key, value, object, err)
}

// ImportSettings reads storage.import.* and what belongs to the cluster. Of a configuration with mistakes the last good one
// counts.
func (c *Client) ImportSettings(ctx context.Context) (driver.ImportSettings, error) {
	c.imports.mu.Lock()
	defer c.imports.mu.Unlock()
	found, err := c.kube.CoreV1().ConfigMaps(api.SystemNamespace).Get(ctx, api.ConfigName, metav1.GetOptions{})
	switch {
	case apierrors.IsNotFound(err):
		c.imports.settings.ImportConfig = api.ImportConfig{}
	case err != nil:
		return driver.ImportSettings{}, err
	default:
		if config, errs := api.ParseConfig(found.Data); errs.Err() == nil {
			c.imports.settings.ImportConfig = config.Import
		}
	}
	if time.Since(c.imports.read) < rangesFor {
		return c.imports.settings, nil
	}
	ranges, err := c.ranges(ctx)
	if err != nil {
		return driver.ImportSettings{}, err
	}
	c.imports.settings.Cluster, c.imports.read = ranges, time.Now()
	return c.imports.settings, nil
}

// ranges are the addresses of nodes, Pods and Services.
func (c *Client) ranges(ctx context.Context) ([]importer.Range, error) {
	var all []importer.Range
	add := func(cidr, what string) {
		if prefix, err := netip.ParsePrefix(cidr); err == nil {
			all = append(all, importer.Range{Prefix: prefix, What: what})
		}
	}
	services, err := c.kube.NetworkingV1().ServiceCIDRs().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("reading the Service ranges: %w", err)
	}
	for i := range services.Items {
		for _, cidr := range services.Items[i].Spec.CIDRs {
			add(cidr, "the cluster's Service range")
		}
	}
	nodes, err := c.kube.CoreV1().Nodes().List(ctx, metav1.ListOptions{ResourceVersion: "0"})
	if err != nil {
		return nil, fmt.Errorf("reading the nodes: %w", err)
	}
	for i := range nodes.Items {
		node := &nodes.Items[i]
		for _, cidr := range node.Spec.PodCIDRs {
			add(cidr, "the cluster's Pod range")
		}
		for _, address := range node.Status.Addresses {
			if ip, err := netip.ParseAddr(address.Address); err == nil {
				add(netip.PrefixFrom(ip, ip.BitLen()).String(), "node "+node.Name)
			}
		}
	}
	return all, nil
}

// ImportState writes annotations, condition and event of a claim.
func (c *Client) ImportState(ctx context.Context, claim volume.Claim, state driver.ImportState) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), stateTimeout)
	defer cancel()
	if state.Event != "" {
		kind := corev1.EventTypeNormal
		if state.Warning {
			kind = corev1.EventTypeWarning
		}
		c.events.Event(&corev1.ObjectReference{
			APIVersion: "v1", Kind: "PersistentVolumeClaim", Namespace: claim.Namespace, Name: claim.Name, UID: types.UID(claim.UID),
		}, kind, state.Event, state.Message)
	}
	err := c.patchClaim(ctx, claim, map[string]any{"metadata": map[string]any{"uid": claim.UID, "annotations": state.Annotations}})
	if err == nil && c.newCondition(claim, state) {
		condition := map[string]any{
			"type": api.ConditionPopulated, "status": state.Populated, "reason": state.Reason, "message": state.Message,
			"lastTransitionTime": metav1.Now(),
		}
		err = c.patchClaim(ctx, claim, map[string]any{"status": map[string]any{"conditions": []any{condition}}}, "status")
	}
	if err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) { // the claim is gone, or another one by now
		klog.FromContext(ctx).Info("The state of an import is not written", "claim", claim.String(), "err", err)
	}
}

// newCondition says whether a condition is worth a write: its message alone, which tells the percentage, is not.
func (c *Client) newCondition(claim volume.Claim, state driver.ImportState) bool {
	if state.Populated == "" {
		return false
	}
	now := state.Populated + "/" + state.Reason
	if state.Reason != "InProgress" {
		now += "/" + state.Message
	}
	c.imports.mu.Lock()
	defer c.imports.mu.Unlock()
	if c.imports.told[claim.UID] == now {
		return false
	}
	c.imports.told[claim.UID] = now
	return true
}

func (c *Client) patchClaim(ctx context.Context, claim volume.Claim, change map[string]any, subresource ...string) error {
	patch, err := json.Marshal(change)
	if err != nil {
		return err
	}
	_, err = c.kube.CoreV1().PersistentVolumeClaims(claim.Namespace).Patch(
		ctx, claim.Name, types.StrategicMergePatchType, patch, metav1.PatchOptions{FieldManager: component}, subresource...)
	return err
}

// forgetEvery is how often imports are compared with the claims that exist: a deleted claim ends its import (ST-055).
const forgetEvery = 500 * time.Millisecond

// forgetting tells forget again and again which claims exist, until ctx ends.
func (c *Client) forgetting(ctx context.Context, claims listers.PersistentVolumeClaimLister, forget Forgetter) {
	ticker := time.NewTicker(forgetEvery)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		forget(ctx, func(claim volume.Claim) driver.ClaimState {
			found, err := claims.PersistentVolumeClaims(claim.Namespace).Get(claim.Name)
			switch {
			case apierrors.IsNotFound(err):
				c.imports.forget(claim.UID)
				return driver.ClaimState{Gone: true}
			case err != nil:
				return driver.ClaimState{}
			}
			return driver.ClaimState{
				Gone: string(found.UID) != claim.UID || found.DeletionTimestamp != nil, Paused: found.Annotations[api.KeyImportPaused] == "true",
			}
		})
	}
}

// Forgetter ends imports whose claims do not exist any more, and lets those pause whose claims say so.
type Forgetter func(ctx context.Context, at func(volume.Claim) driver.ClaimState)
