package nl

import (
	"errors"
	"fmt"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Hook is one of the two places of a clsact qdisc (net/sched/sch_ingress.c).
type Hook uint32

// The two hooks: frames that the interface received, and frames it is about to send.
const (
	Ingress Hook = netlink.HANDLE_MIN_INGRESS
	Egress  Hook = netlink.HANDLE_MIN_EGRESS
)

// Filter is one filter at a clsact hook.
type Filter struct {
	Kind     string // bpf, u32, matchall, …
	Name     string // of a bpf filter
	Priority uint16
}

// AddClsact gives the interface the qdisc that filters hang on; it goes with the interface.
func (h *Handle) AddClsact(index int) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := do(func() error { return h.raw.QdiscAdd(qdisc) }); err != nil {
		return fmt.Errorf("adding clsact to link %d: %w", index, orNotFound(err))
	}
	return nil
}

// HasClsact says whether the interface has the qdisc already.
func (h *Handle) HasClsact(index int) (bool, error) {
	qdiscs, err := dump(func() ([]netlink.Qdisc, error) { return h.raw.QdiscList(byIndex(index)) })
	if err != nil {
		return false, fmt.Errorf("listing qdiscs of link %d: %w", index, orNotFound(err))
	}
	for _, q := range qdiscs {
		if q.Type() == "clsact" {
			return true, nil
		}
	}
	return false, nil
}

// Dropped returns how many frames the filters of the interface's clsact have dropped, on both hooks; 0 where it has none.
func (h *Handle) Dropped(index int) (uint64, error) {
	qdiscs, err := dump(func() ([]netlink.Qdisc, error) { return h.raw.QdiscList(byIndex(index)) })
	if err != nil {
		return 0, fmt.Errorf("listing qdiscs of link %d: %w", index, orNotFound(err))
	}
	for _, q := range qdiscs {
		if stats := q.Attrs().Statistics; q.Type() == "clsact" && stats != nil && stats.Queue != nil {
			return uint64(stats.Queue.Drops), nil
		}
	}
	return 0, nil
}

// DeleteClsact removes the qdisc with all its filters.
func (h *Handle) DeleteClsact(index int) error {
	qdisc := &netlink.Clsact{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(0xffff, 0), Parent: netlink.HANDLE_CLSACT,
	}}
	if err := do(func() error { return h.raw.QdiscDel(qdisc) }); err != nil {
		return fmt.Errorf("deleting clsact of link %d: %w", index, orNotFound(err))
	}
	return nil
}

// AddBPF hangs a loaded program of type sched_cls in direct action mode on a hook; the kernel keeps the program as
// long as the filter exists.
func (h *Handle) AddBPF(index int, hook Hook, program int, name string) error {
	filter := &netlink.BpfFilter{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: index, Parent: uint32(hook), Handle: 1, Protocol: unix.ETH_P_ALL, Priority: 1},
		Fd:          program, Name: name, DirectAction: true,
	}
	if err := do(func() error { return h.raw.FilterAdd(filter) }); err != nil {
		return fmt.Errorf("adding filter %s to link %d: %w", name, index, orNotFound(err))
	}
	return nil
}

// DeleteFilter removes the BPF filter of this name from a hook; it is no error when there is none.
func (h *Handle) DeleteFilter(index int, hook Hook, name string) error {
	raw, err := dump(func() ([]netlink.Filter, error) { return h.raw.FilterList(byIndex(index), uint32(hook)) })
	if errors.Is(err, unix.EINVAL) || IsNotFound(err) {
		return nil // no clsact, no link
	}
	if err != nil {
		return fmt.Errorf("listing filters of link %d: %w", index, err)
	}
	for _, f := range raw {
		if bpf, ok := f.(*netlink.BpfFilter); !ok || bpf.Name != name {
			continue
		}
		if err := do(func() error { return h.raw.FilterDel(f) }); err != nil && !IsNotFound(err) {
			return fmt.Errorf("deleting filter %s of link %d: %w", name, index, err)
		}
	}
	return nil
}

// Key is one 32 bit comparison of a u32 filter: the word at Offset bytes from the network header, masked, equals Value.
type Key struct {
	Offset      int32
	Mask, Value uint32
}

// Redirect says which frames of a link go out of another one instead. No keys: all frames.
type Redirect struct {
	From, To int // indexes
	Protocol uint16
	Priority uint16
	Keys     []Key
}

// AddRedirect hangs a u32 filter with the action mirred egress redirect on the ingress hook: what kernels without
// cls_bpf can do.
func (h *Handle) AddRedirect(r Redirect) error {
	selector := &netlink.TcU32Sel{Flags: netlink.TC_U32_TERMINAL}
	if len(r.Keys) == 0 {
		selector.Keys = []netlink.TcU32Key{{}}
	}
	for _, key := range r.Keys {
		selector.Keys = append(selector.Keys, netlink.TcU32Key{Mask: key.Mask, Val: key.Value, Off: key.Offset})
	}
	selector.Nkeys = uint8(len(selector.Keys))
	filter := &netlink.U32{
		FilterAttrs: netlink.FilterAttrs{LinkIndex: r.From, Parent: uint32(Ingress), Protocol: r.Protocol, Priority: r.Priority},
		Sel:         selector,
		Actions:     []netlink.Action{netlink.NewMirredAction(r.To)},
	}
	if err := do(func() error { return h.raw.FilterAdd(filter) }); err != nil {
		return fmt.Errorf("adding redirect from link %d to link %d: %w", r.From, r.To, orNotFound(err))
	}
	return nil
}

// Filters returns the filters at one hook; none, where the interface has no clsact.
func (h *Handle) Filters(index int, hook Hook) ([]Filter, error) {
	raw, err := dump(func() ([]netlink.Filter, error) { return h.raw.FilterList(byIndex(index), uint32(hook)) })
	if errors.Is(err, unix.EINVAL) {
		return nil, nil // no clsact
	}
	if err != nil {
		return nil, fmt.Errorf("listing filters of link %d: %w", index, err)
	}
	out := make([]Filter, 0, len(raw))
	for _, f := range raw {
		filter := Filter{Kind: f.Type(), Priority: f.Attrs().Priority}
		if bpf, ok := f.(*netlink.BpfFilter); ok {
			filter.Name = bpf.Name
		}
		out = append(out, filter)
	}
	return out, nil
}
