// Package launcher asks launchers for the status of their VMs. Whoever has broken out of a guest may be the one that
// answers: an answer is small, quick and of one type, and nothing it says leads anywhere else.
package launcher

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strconv"
	"time"

	"podvirt.dev/internal/vmstatus"
)

const (
	dialTimeout   = time.Second
	answerTimeout = 2 * time.Second
	idleTimeout   = 30 * time.Second
	maxAnswer     = 128 << 10
	bufferSize    = 2 << 10 // one of each per VM
)

// Client asks over connections that it keeps.
type Client struct{ http *http.Client }

// New returns a client.
func New() *Client {
	return &Client{http: &http.Client{
		Timeout:       answerTimeout,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{ // and no proxy
			DialContext: (&net.Dialer{Timeout: dialTimeout}).DialContext, MaxIdleConnsPerHost: 1, IdleConnTimeout: idleTimeout,
			DisableCompression: true, ReadBufferSize: bufferSize, WriteBufferSize: bufferSize, MaxResponseHeaderBytes: bufferSize,
		},
	}}
}

// Ask returns what the launcher says at an address of the Pod network.
func (c *Client) Ask(ctx context.Context, ip string, port int) (vmstatus.Status, error) {
	url := "http://" + net.JoinHostPort(ip, strconv.Itoa(port)) + "/status"
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return vmstatus.Status{}, fmt.Errorf("status of the launcher: %w", err)
	}
	response, err := c.http.Do(request)
	if err != nil {
		return vmstatus.Status{}, fmt.Errorf("status of the launcher: %w", err)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return vmstatus.Status{}, fmt.Errorf("status of the launcher: %s", response.Status)
	}
	text, err := io.ReadAll(io.LimitReader(response.Body, maxAnswer+1))
	if err == nil && len(text) > maxAnswer {
		err = errors.New("the answer is too long")
	}
	var status vmstatus.Status
	if err == nil {
		err = json.Unmarshal(text, &status)
	}
	if err != nil {
		return vmstatus.Status{}, fmt.Errorf("status of the launcher: %w", err)
	}
	return status, nil
}
