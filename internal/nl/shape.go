package nl

import (
	"fmt"

	"github.com/vishvananda/netlink"
)

// shapeHandle is the handle by which a limit is known as ours.
const shapeHandle = 0x7076

// burstBytes is what may pass at once: a whole frame that is still to be segmented, and 10 ms of fast limits.
func burstBytes(rate uint64) uint32 { return uint32(max(rate/100, 128<<10)) }

// Shape limits what the interface sends to so many bits per second (tc-tbf(8)); it goes with the interface.
func (h *Handle) Shape(index int, bits uint64) error {
	rate := bits / 8
	burst := burstBytes(rate)
	qdisc := &netlink.Tbf{
		QdiscAttrs: netlink.QdiscAttrs{LinkIndex: index, Handle: netlink.MakeHandle(shapeHandle, 0), Parent: netlink.HANDLE_ROOT},
		Rate:       rate, Buffer: netlink.Xmittime(rate, burst), Limit: uint32(rate/20) + burst, // 50 ms wait at most
	}
	if err := do(func() error { return h.raw.QdiscAdd(qdisc) }); err != nil {
		return fmt.Errorf("limiting link %d to %d bit/s: %w", index, bits, orNotFound(err))
	}
	return nil
}

// Shaped returns the limit that Shape gave the interface, in bits per second; 0: none.
func (h *Handle) Shaped(index int) (uint64, error) {
	qdiscs, err := dump(func() ([]netlink.Qdisc, error) { return h.raw.QdiscList(byIndex(index)) })
	if err != nil {
		return 0, fmt.Errorf("listing qdiscs of link %d: %w", index, orNotFound(err))
	}
	for _, q := range qdiscs {
		if tbf, ok := q.(*netlink.Tbf); ok && tbf.Handle == netlink.MakeHandle(shapeHandle, 0) {
			return tbf.Rate * 8, nil
		}
	}
	return 0, nil
}

// Unshape takes the limit of Shape away; it is no error when there is none.
func (h *Handle) Unshape(index int) error {
	limit, err := h.Shaped(index)
	if err != nil || limit == 0 {
		return err
	}
	qdisc := &netlink.Tbf{QdiscAttrs: netlink.QdiscAttrs{
		LinkIndex: index, Handle: netlink.MakeHandle(shapeHandle, 0), Parent: netlink.HANDLE_ROOT,
	}}
	if err := do(func() error { return h.raw.QdiscDel(qdisc) }); err != nil {
		return fmt.Errorf("taking the limit off link %d: %w", index, orNotFound(err))
	}
	return nil
}
