package plugin

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/containernetworking/plugins/pkg/ns"

	"podvirt.dev/cni-bridge/internal/world"
)

// TestNetworkIsAllOrNothing lets ADD fail, and kills it, behind each step of each kind of network.
func TestNetworkIsAllOrNothing(t *testing.T) {
	for name, conf := range lanConfigs(t) {
		if vlans() && name != "access" {
			continue // the others need no other kernel
		}
		t.Run(name, func(t *testing.T) {
			n := newNode(t)
			n.uplinked(t)
			n.fakeIPAM(t)
			pod := newAttachment(t, world.Options{}, nil)
			before, podBefore := world.Snapshot(t, n.netns), world.Snapshot(t, pod.Pod)
			var names []string
			pod.plugin.AfterStep = func(step string) error { names = append(names, step); return nil }
			_, err := n.call(t, pod, "net1", conf, "ADD")
			must(t, err)
			pod.plugin.AfterStep = nil
			_, err = n.call(t, pod, "net1", conf, "DEL")
			must(t, err)
			for i, step := range names {
				count := 0
				pod.plugin.AfterStep = func(string) error {
					if count++; count == i+1 {
						return errors.New("injected")
					}
					return nil
				}
				if _, err := n.call(t, pod, "net1", conf, "ADD"); err == nil || !strings.Contains(err.Error(), "injected") {
					t.Errorf("behind %s: ADD = %v", step, err)
				}
				pod.plugin.AfterStep = nil
				n.leavesNothing(t, pod, before, podBefore)
				if vlans() {
					continue // the guest is slow, and to a kill all kernels are alike
				}
				for _, next := range []string{"DEL", "GC", "ADD"} {
					n.addAndDie(t, pod, conf, i+1)
					if _, err := n.call(t, pod, "net1", conf, next); err != nil {
						t.Errorf("%s after a kill behind %s: %v", next, step, err)
					}
					if next == "ADD" {
						_, err := n.call(t, pod, "net1", conf, "CHECK")
						must(t, err)
						_, err = n.call(t, pod, "net1", conf, "DEL")
						must(t, err)
					}
					n.leavesNothing(t, pod, before, podBefore)
				}
			}
		})
	}
}

// addAndDie runs an ADD in a process that is killed behind a step.
func (n *node) addAndDie(t *testing.T, pod *attachment, conf map[string]any, after int) {
	t.Helper()
	input, err := json.Marshal(map[string]any{"Args": n.args(t, pod, "net1", conf), "After": after})
	must(t, err)
	cmd := child(t, envKill+"=1")
	cmd.Stdin = bytes.NewReader(input)
	must(t, n.netns.Do(func(ns.NetNS) error { err = cmd.Run(); return nil }))
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); !ok || status.Signal() != syscall.SIGKILL {
		t.Fatalf("the child ended with %v; want it killed", err)
	}
}

// More of both than the test has time for: make soak-cni.
const (
	envPods  = "PODVIRT_CNI_PODS"
	envRaces = "PODVIRT_CNI_RACES"
)

func fromEnv(t *testing.T, name string, otherwise int) int {
	t.Helper()
	text := os.Getenv(name)
	if text == "" {
		return otherwise
	}
	n, err := strconv.Atoi(text)
	must(t, err)
	return n
}

// TestBridgeOnDemandRace lets many Pods come and go on one bridge (NW-107): the last to go removes it under the first to come.
func TestBridgeOnDemandRace(t *testing.T) {
	pods, rounds := fromEnv(t, envPods, 8), fromEnv(t, envRaces, 10)
	n := newNode(t)
	n.uplinked(t)
	before := world.Snapshot(t, n.netns)
	// How long the last in the queue waits is a matter of the machine alone.
	conf := map[string]any{"uplink": "up0", "macspoofchk": true, "lockTimeout": "30m"}
	if vlans() {
		conf["vlan"] = 100
		pods, rounds = min(pods, 4), min(rounds, 3) // the guest is slow
	}
	done := make(chan error, pods)
	all := make([]*attachment, pods)
	for i := range all {
		all[i] = newAttachment(t, world.Options{}, nil)
		all[i].id = fmt.Sprintf("c%d", i)
		args := n.args(t, all[i], "net1", conf)
		go func() {
			done <- n.netns.Do(func(ns.NetNS) error {
				funcs := Plugin{Out: &bytes.Buffer{}}.Funcs(t.Context())
				var errs []error
				for range rounds {
					errs = append(errs, funcs.Add(args), funcs.Check(args), funcs.Del(args))
				}
				return errors.Join(errs...)
			})
		}()
	}
	for range all {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	n.leavesNothing(t, all[0], before, world.Snapshot(t, all[0].Pod))
}
