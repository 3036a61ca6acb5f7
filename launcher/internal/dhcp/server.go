package dhcp

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"k8s.io/klog/v2"
)

// Link is an open service tap: each Read returns one frame, each Write sends one. Close ends a Read that waits.
type Link interface {
	io.ReadWriteCloser
}

// Limits of what a guest can make us do.
const (
	maxFrame   = 2048 // a longer frame is no request; the tap cuts it
	burst      = 64   // answers at once
	perSecond  = 32   // answers
	startBurst = 3    // advertisements soon after the start (RFC 4861, MAX_INITIAL_RTR_ADVERTISEMENTS)
	startPause = 16 * time.Second
)

// Server answers one guest NIC.
type Server struct {
	config Config
	link   Link
	bucket bucket
}

// New returns a server for one NIC over its service tap. It starts nothing.
func New(config Config, link Link) (*Server, error) {
	if err := config.Validate(); err != nil {
		return nil, err
	}
	return &Server{config: config, link: link, bucket: bucket{tokens: burst}}, nil
}

// Run answers until ctx ends, which closes the link, or the link fails. It returns nil when ctx ended.
func (s *Server) Run(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = s.link.Close() })
	defer stop()
	var advertiser sync.WaitGroup
	defer advertiser.Wait()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	if s.config.RA {
		advertiser.Go(func() { s.advertiseForEver(ctx) })
	}
	err := s.serve(ctx)
	if ctx.Err() != nil || errors.Is(err, os.ErrClosed) || errors.Is(err, io.EOF) {
		return nil
	}
	return err
}

func (s *Server) serve(ctx context.Context) error {
	logger := klog.FromContext(ctx)
	frame := make([]byte, maxFrame)
	for {
		n, err := s.link.Read(frame)
		if err != nil {
			return fmt.Errorf("reading the service tap: %w", err)
		}
		answer, what := s.config.Answer(frame[:n])
		if answer == nil {
			continue
		}
		if !s.bucket.take(time.Now()) {
			continue // a guest that floods gets silence, not log lines
		}
		logger.V(3).Info("answering the guest", "with", what, "mac", s.config.GuestMAC)
		if _, err := s.link.Write(answer); err != nil {
			logger.V(2).Info("answer not sent", "with", what, "err", err)
		}
	}
}

// Answer returns the frame that answers a frame of the guest and what it is; nil: nothing is to be said.
func (c Config) Answer(frame []byte) (answer []byte, what string) {
	request, ok := parseFrame(frame)
	if !ok || !bytes.Equal(request.sourceMAC, c.GuestMAC) {
		return nil, ""
	}
	switch {
	case request.source.Is4() && request.port == portServer4:
		message, err := dhcpv4.FromBytes(request.payload)
		if err != nil {
			return nil, ""
		}
		if reply := c.answer4(message); reply != nil {
			return c.frame4(request, reply), "DHCPv4 " + reply.MessageType().String()
		}
	case request.protocol == protocolUDP && request.port == portServer6 && request.source.IsLinkLocalUnicast():
		message, err := dhcpv6.MessageFromBytes(request.payload)
		if err != nil {
			return nil, ""
		}
		if reply := c.answer6(message); reply != nil {
			return c.frame6(request, reply), "DHCPv6 " + reply.MessageType.String()
		}
	case c.RA && isSolicitation(request):
		destination := request.source
		if destination.IsUnspecified() {
			destination = netip.Addr{} // the guest has no address yet: all nodes
		}
		return c.advertise(destination, request.sourceMAC), "router advertisement"
	}
	return nil, ""
}

// isSolicitation checks a router solicitation as RFC 4861 section 6.1.1 wants.
func isSolicitation(p packet) bool {
	return p.protocol == protocolICMPv6 && p.hopLimit == hopLimitND && p.payload[0] == icmpRouterSolicitation && p.payload[1] == 0 &&
		(p.source.IsUnspecified() || p.source.IsLinkLocalUnicast())
}

// advertiseForEver sends unsolicited advertisements, the first ones soon.
func (s *Server) advertiseForEver(ctx context.Context) {
	logger := klog.FromContext(ctx)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for sent := 0; ; sent++ {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		if _, err := s.link.Write(s.config.advertise(netip.Addr{}, nil)); err != nil && ctx.Err() == nil {
			logger.V(2).Info("router advertisement not sent", "err", err)
		}
		pause := minInterval + rand.N(maxInterval-minInterval)
		if sent < startBurst {
			pause = startPause
		}
		timer.Reset(pause)
	}
}

// bucket is a token bucket: perSecond tokens come back each second, up to burst. It belongs to one goroutine.
type bucket struct {
	tokens float64
	last   time.Time
}

func (b *bucket) take(now time.Time) bool {
	if !b.last.IsZero() {
		b.tokens = min(burst, b.tokens+now.Sub(b.last).Seconds()*perSecond)
	}
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
