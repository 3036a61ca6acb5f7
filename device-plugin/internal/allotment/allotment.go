// Package allotment learns how the kubelet of this node gives CPUs, memory and devices to containers: its policies from
// its configuration (/configz), and who has what from its pod resources API (scheduling.md SC-011, SC-012).
package allotment

import (
	"context"
	"os"
	"reflect"
	"slices"
	"syscall"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
)

const (
	// period is how often the kubelet is asked who has what: nothing tells of it, and facts must be right within five
	// seconds (SC-011).
	period = 3 * time.Second
	// patience is how long a configuration that could not be read is left alone.
	patience = 30 * time.Second
)

// Given is what the kubelet says.
type Given struct {
	Kubelet     *api.Kubelet        // nil: not known
	Problem     string              // why it is not known
	Exclusive   []int               // CPUs that containers have for themselves, sorted
	Allocatable []int               // CPUs that containers may have for themselves, sorted; none without a static CPU manager
	Memory      map[int]int64       // bytes that a static memory manager has given out, by NUMA cell
	Units       map[string][]string // units that containers have, by extended resource
}

// Reader asks the kubelet.
type Reader struct {
	Socket string                                          // of the pod resources API
	Config func(ctx context.Context) (*api.Kubelet, error) // reads the configuration

	socket  os.FileInfo // as it was when the configuration was read
	kubelet *api.Kubelet
	problem string
	retry   time.Time
}

// Run calls set with the first answer and with every other one that differs, until ctx ends. The configuration is read
// again when the kubelet has started anew, which its socket shows.
func (r *Reader) Run(ctx context.Context, set func(Given)) {
	ticker := time.NewTicker(period)
	defer ticker.Stop()
	var last *Given
	for {
		now := r.look(ctx)
		if ctx.Err() != nil {
			return
		}
		if last == nil || !reflect.DeepEqual(*last, now) {
			set(now)
			last = &now
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

func (r *Reader) look(ctx context.Context) Given {
	r.readConfig(ctx)
	now := Given{Kubelet: r.kubelet, Problem: r.problem}
	if err := ask(ctx, r.Socket, &now); err != nil {
		klog.FromContext(ctx).V(2).Info("Who has which CPUs is not known", "err", err)
	}
	return now
}

// readConfig reads the configuration when it may have changed.
func (r *Reader) readConfig(ctx context.Context) {
	socket, _ := os.Stat(r.Socket) // without it there is no kubelet to ask, or none that says who has what
	switch {
	case r.kubelet != nil && sameSocket(r.socket, socket):
		return
	case r.kubelet == nil && time.Now().Before(r.retry):
		return
	}
	kubelet, err := r.Config(ctx)
	if err != nil {
		r.kubelet, r.retry = nil, time.Now().Add(patience)
		if text := "kubelet: " + err.Error(); text != r.problem {
			klog.FromContext(ctx).Info("The kubelet's configuration cannot be read; its policies count as none", "err", err)
			r.problem = text
		}
		return
	}
	r.kubelet, r.socket, r.problem = kubelet, socket, ""
	klog.FromContext(ctx).Info("The kubelet's policies", "cpu", kubelet.CPU, "cpuOptions", kubelet.CPUOptions, "memory", kubelet.Memory,
		"topology", kubelet.Topology, "scope", kubelet.TopologyScope)
}

// sameSocket compares inode and time: a kubelet makes its socket anew when it starts.
func sameSocket(a, b os.FileInfo) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	inode := func(info os.FileInfo) uint64 {
		if stat, ok := info.Sys().(*syscall.Stat_t); ok {
			return stat.Ino
		}
		return 0
	}
	return inode(a) == inode(b) && a.ModTime().Equal(b.ModTime())
}

// sorted returns numbers in order, each once.
func sorted(ids []int64) []int {
	numbers := make([]int, 0, len(ids))
	for _, id := range ids {
		numbers = append(numbers, int(id))
	}
	slices.Sort(numbers)
	return slices.Compact(numbers)
}
