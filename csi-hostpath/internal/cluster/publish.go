package cluster

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	clientscheme "k8s.io/client-go/kubernetes/scheme"
	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/csi-hostpath/internal/pool"
)

const (
	// publishInterval is how often the pools are looked at; they are written only when that tells something new.
	publishInterval = 10 * time.Second
	// worthWriting is the share of a pool by which its free space must change to be written again.
	worthWriting = 100 // one hundredth
)

// NodePools is the value of the annotation podvirt.dev/pools (storage.md 2.7).
type NodePools struct {
	Time   time.Time     `json:"time"`
	BootID string        `json:"bootID"`
	Pools  []pool.Report `json:"pools"`
}

// Publish keeps the annotation of the own Node true until ctx ends.
func (c *Client) Publish(ctx context.Context, reports func() []pool.Report) error {
	logger := klog.FromContext(ctx)
	ticker := time.NewTicker(publishInterval)
	defer ticker.Stop()
	var written []pool.Report
	for {
		now := reports()
		if news(written, now) {
			c.warnOfSharing(written, now)
			c.warnOfRemoval(written, now)
			if err := c.write(ctx, now); err != nil {
				logger.Info("Publishing the pools; it will be tried again", "err", err)
			} else {
				written = now
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-ticker.C:
		}
	}
}

// news reports whether the difference is worth a write.
func news(before, now []pool.Report) bool {
	if before == nil || len(before) != len(now) {
		return true
	}
	for i, a := range before {
		b := now[i]
		if moved(a.Free, b.Free, b.Size) || moved(a.Promised, b.Promised, b.Size) || moved(a.Available, b.Available, b.Size) {
			return true
		}
		a.Free, a.Promised, a.Available = b.Free, b.Promised, b.Available
		if a != b {
			return true
		}
	}
	return false
}

func moved(before, now, whole int64) bool {
	return max(before, now)-min(before, now) > whole/worthWriting || (before == 0) != (now == 0)
}

// warnOfSharing makes an event of every pool that newly turned out to lie on the OS's file system (ST-005).
func (c *Client) warnOfSharing(before, now []pool.Report) {
	for _, report := range now {
		shares := func(r pool.Report) bool { return r.Name == report.Name && r.SharesOS }
		if !report.SharesOS || slices.ContainsFunc(before, shares) {
			continue
		}
		message := fmt.Sprintf("pool %s: %s is on the file system of the OS or of kubelet", report.Name, report.Path)
		if !report.Ready {
			message += "; it is not used: mount a file system of its own there, or set allowShared: true"
		}
		c.events.Event(c.node(), corev1.EventTypeWarning, "PoolSharesOS", message)
	}
}

// warnOfRemoval makes an event of every pool with volumes that is not configured any more (ST-001).
func (c *Client) warnOfRemoval(before, now []pool.Report) {
	for _, report := range before {
		stays := slices.ContainsFunc(now, func(r pool.Report) bool { return r.Name == report.Name })
		if stays || report.Promised == 0 {
			continue
		}
		c.events.Event(c.node(), corev1.EventTypeWarning, "PoolRemoved", fmt.Sprintf(
			"pool %s (%s) is not in storage.pools any more: its volumes stay usable, new ones are not made there", report.Name, report.Path))
	}
}

// node refers to the own Node. Events of Nodes carry the node's name as uid; kubelet does the same.
func (c *Client) node() *corev1.ObjectReference {
	return &corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: c.opts.Node, UID: types.UID(c.opts.Node)}
}

func (c *Client) write(ctx context.Context, reports []pool.Report) error {
	value, err := json.Marshal(NodePools{Time: time.Now().UTC().Truncate(time.Second), BootID: bootID(), Pools: reports})
	if err != nil {
		return err
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{"annotations": map[string]string{api.NodePools: string(value)}}})
	if err != nil {
		return err
	}
	_, err = c.kube.CoreV1().Nodes().Patch(ctx, c.opts.Node, types.MergePatchType, patch, metav1.PatchOptions{FieldManager: component})
	return err
}

// bootID is that of the running kernel; empty where it cannot be read.
func bootID() string {
	data, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return ""
	}
	return strings.TrimSpace(string(data))
}

func scheme() *runtime.Scheme { return clientscheme.Scheme }
