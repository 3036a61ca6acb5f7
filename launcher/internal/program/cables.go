package program

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/klog/v2"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/control"
	"podvirt.dev/launcher/internal/domain"
	"podvirt.dev/launcher/internal/virt"
)

// lookAtLinks is the pause between two looks at the annotations, which the kubelet brings up to date within a minute or two.
const lookAtLinks = time.Second

const (
	linkUp   = "up"
	linkDown = "down"
)

// cables pulls and plugs the virtual cables of a running guest (NW-042): where the annotation of a NIC says so anew, and where
// launcher ctl update says so. The later of both wins; a new QEMU begins with what the annotations say.
type cables struct {
	network *network
	domain  func() (virt.Domain, error)
	stat    func() (fs.FileInfo, error) // of the file of annotations
	load    func() (api.Machine, error)

	seen fs.FileInfo // as the annotations were read last
}

func (i *instance) cables() *cables {
	return &cables{
		network: i.network, domain: i.machine.Domain,
		stat: func() (fs.FileInfo, error) { return os.Stat(filepath.Join(api.PathPod, api.PodFileAnnotations)) },
		load: func() (api.Machine, error) {
			vm, _, err := load()
			return vm, err
		},
	}
}

func (c *cables) run(ctx context.Context) {
	tick := time.NewTicker(lookAtLinks)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			c.look(klog.FromContext(ctx))
		}
	}
}

// look follows the annotations if they have changed. What fails is tried again with the next look; annotations with a
// mistake change nothing.
func (c *cables) look(logger klog.Logger) {
	now, err := c.stat()
	if err != nil || c.seen != nil && os.SameFile(now, c.seen) && now.ModTime().Equal(c.seen.ModTime()) && now.Size() == c.seen.Size() {
		return
	}
	vm, err := c.load()
	if err != nil {
		c.seen = now
		return
	}
	var failed error
	for _, name := range c.network.names() {
		want := link(options(vm, name))
		if c.network.said(name) == want {
			continue
		}
		if err := c.set(name, want == linkUp); err != nil {
			failed = errors.Join(failed, fmt.Errorf("NIC %s: %w", name, err))
			continue
		}
		c.network.say(name, want)
		logger.Info("the annotation moves the cable of a NIC", "nic", name, "link", want)
	}
	if failed != nil {
		logger.V(2).Info("a cable stays as it is; it is tried again", "why", failed.Error())
		return
	}
	c.seen = now
}

// set moves one cable.
func (c *cables) set(name string, up bool) error {
	d, err := c.domain()
	if err != nil {
		return err
	}
	running, err := d.XML()
	if err != nil {
		return err
	}
	xml, err := domain.SetLink(running, name, up)
	if err != nil {
		return err
	}
	if err := d.UpdateDevice(xml); err != nil {
		return err
	}
	return c.network.hear(d)
}

// names are those of the NICs that were found.
func (n *network) names() []string {
	found := n.list()
	names := make([]string, 0, len(found))
	for _, nic := range found {
		names = append(names, nic.Name)
	}
	return names
}

// connected notes what the annotations say that the guest begins with.
func (n *network) connected(vm api.Machine) {
	n.mu.Lock()
	defer n.mu.Unlock()
	for _, nic := range n.found {
		n.links[nic.Name] = link(options(vm, nic.Name))
	}
}

// said is what the annotation of a NIC said last about its carrier.
func (n *network) said(name string) string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.links[name]
}

func (n *network) say(name, word string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.links[name] = word
}

// hear learns from the running domain what its NICs are.
func (n *network) hear(d virt.Domain) error {
	xml, err := d.XML()
	if err != nil {
		return err
	}
	cables, err := domain.Cables(xml, n.names())
	if err != nil {
		return err
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cables = cables
	return nil
}

// cable is what is known of a NIC of the running guest.
func (n *network) cable(name string) (domain.Cable, bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	c, ok := n.cables[name]
	return c, ok
}

// link is what the options of a NIC say about its carrier.
func link(o api.NIC) string {
	if o.Link == linkDown {
		return linkDown
	}
	return linkUp
}

// update is launcher ctl update nic [NAME] link=up|down.
func (i *instance) update(_ context.Context, a url.Values) (control.Answer, error) {
	name, up, err := updateOf(a["what"])
	if err != nil {
		return control.Answer{}, err
	}
	if names := i.network.names(); !slices.Contains(names, name) {
		text := fmt.Sprintf("update nic %s: no such NIC: %s", name, strings.Join(names, ", "))
		if near := api.Nearest(name, names); near != "" {
			text += "; nearest: " + near
		}
		return control.Answer{}, errors.New(text)
	}
	return control.Answer{}, i.cables().set(name, up)
}

// updateOf reads the words behind update.
func updateOf(words []string) (nic string, up bool, err error) {
	if len(words) == 0 || words[0] != "nic" {
		return "", false, fmt.Errorf("%w: update %s: want nic [NAME] link=up or link=down", control.ErrUsage, strings.Join(words, " "))
	}
	nic, words = api.PodNetwork, words[1:]
	if len(words) == 2 {
		nic, words = words[0], words[1:]
	}
	if len(words) != 1 {
		return "", false, fmt.Errorf("%w: update nic: want [NAME] link=up or link=down", control.ErrUsage)
	}
	switch words[0] {
	case "link=" + linkUp:
		return nic, true, nil
	case "link=" + linkDown:
		return nic, false, nil
	}
	return "", false, fmt.Errorf("%w: update nic %s: %s: not one of link=up, link=down", control.ErrUsage, nic, words[0])
}
