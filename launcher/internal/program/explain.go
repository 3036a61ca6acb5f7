package program

import (
	"context"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"

	"podvirt.dev/api"
	"podvirt.dev/launcher/internal/disks"
	"podvirt.dev/launcher/internal/domain"
	"podvirt.dev/launcher/internal/lifecycle"
	"podvirt.dev/launcher/internal/nics"
	"podvirt.dev/launcher/internal/podenv"
)

// lackError: the node or the container lacks what the VM needs (NodeLacks).
type lackError struct{ text string }

func (e *lackError) Error() string { return e.text }

// explain maps an error of a start to how the container ends: the one place that does.
func explain(pod string) func(error) lifecycle.Outcome {
	return func(err error) lifecycle.Outcome {
		var (
			config  api.Errors
			volume  *disks.Error
			network *nics.Error
			lack    *lackError
			forced  *forcedError
			step    *lifecycle.StepError
		)
		switch {
		case errors.As(err, &config):
			return lifecycle.Outcome{
				Reason: api.ReasonBadConfig, Text: config.TerminationMessage(pod, api.MaxTerminationMessage),
			}
		case errors.Is(err, podenv.ErrNoPodVolume):
			return lifecycle.Outcome{Reason: api.ReasonBadConfig, Text: string(api.ReasonBadConfig) + ": " + err.Error()}
		case errors.As(err, &network):
			if network.Reason == api.ReasonBadConfig {
				return lifecycle.Outcome{Reason: network.Reason, Text: string(network.Reason) + ": " + network.Text}
			}
			return lifecycle.Outcome{Reason: network.Reason, Text: network.Text}
		case errors.As(err, &volume):
			return lifecycle.Outcome{Reason: api.ReasonVolumeProblem, Text: oneLine(err.Error())}
		case errors.As(err, &lack):
			return lifecycle.Outcome{Reason: api.ReasonNodeLacks, Text: lack.text}
		case errors.As(err, &forced):
			return lifecycle.Outcome{Reason: api.ReasonStartFailed, Text: forced.Error()}
		case errors.Is(err, domain.ErrUnsupported):
			return lifecycle.Outcome{Reason: api.ReasonNodeLacks, Text: err.Error()}
		case errors.Is(err, context.Canceled):
			return lifecycle.Outcome{Reason: api.ReasonStopped, Text: "asked to stop before the guest ran"}
		case errors.As(err, &step):
			return hypervisorRefused(step.Err.Error())
		default:
			return lifecycle.Outcome{Reason: api.ReasonInternal, Text: err.Error()}
		}
	}
}

func oneLine(text string) string { return strings.ReplaceAll(text, "\n", "; ") }

// heldImage is what QEMU says of an image that another QEMU holds.
func heldImage() *regexp.Regexp {
	return regexp.MustCompile(`Failed to get (?:shared )?"[^"]*" lock(?s:.*)Is another process using the image \[([^\]]*)\]`)
}

// refusals are what QEMU and libvirt say when the node is the cause. Their wording is all they give.
func refusals() []struct {
	pattern *regexp.Regexp
	reason  api.Reason
	text    string // $1 is the first group
} {
	return []struct {
		pattern *regexp.Regexp
		reason  api.Reason
		text    string
	}{
		{heldImage(), api.ReasonVolumeProblem, "$1: locked by another QEMU"},
		{regexp.MustCompile(`TPM result for CMD_INIT: ([^\n]*)`),
			api.ReasonVolumeProblem, api.PathState + "/" + stateTPM + ": swtpm cannot go on from what is kept there: $1"},
		{regexp.MustCompile(`(?:Could not access KVM kernel module|failed to initialize kvm|KVM is not available)[^\n]*`),
			api.ReasonNodeLacks, "KVM: $0"},
		{regexp.MustCompile(`(?i)(?:Host CPU does not provide required features|missing features): ([^\n]*)`),
			api.ReasonNodeLacks, "the CPU lacks $1"},
		{regexp.MustCompile(`Host CPU provides forbidden features: ([^\n]*)`), api.ReasonNodeLacks, "the CPU has $1, which the VM forbids"},
		{regexp.MustCompile(`Unknown CPU model ([^\n]*)`), api.ReasonNodeLacks, "no such CPU model on this node: $1"},
		{regexp.MustCompile(`(?i)the machine type '?([^' ]*)'? (?:is not supported|does not exist)|unsupported machine type '?([^' \n]*)`),
			api.ReasonNodeLacks, "$0"},
		{regexp.MustCompile(`'([^' ]*)' is not a valid device model name`), api.ReasonNodeLacks, "this QEMU has no device $1"},
		{regexp.MustCompile(`cannot set up guest memory '[^']*': ([^\n]*)`), api.ReasonNodeLacks, "guest memory: $1"},
	}
}

// hypervisorRefused sorts out why libvirt or QEMU did not start the domain.
func hypervisorRefused(text string) lifecycle.Outcome {
	for _, r := range refusals() {
		if m := r.pattern.FindStringSubmatchIndex(text); m != nil {
			return lifecycle.Outcome{Reason: r.reason, Text: string(r.pattern.ExpandString(nil, r.text, text, m))}
		}
	}
	return lifecycle.Outcome{Reason: api.ReasonStartFailed, Text: lastWords(text)}
}

// qemuLine is a line of QEMU's own, with its time.
func qemuLine() *regexp.Regexp { return regexp.MustCompile(`^\S+Z qemu-system-\S+: (.*)`) }

// hint begins a line of QEMU's that only explains the one before.
const hint = "info: "

// qemuEnded is libvirt's sentence before QEMU's words: one where it was connecting, another where it was connected (libvirt:
// src/qemu/qemu_process.c, src/qemu/qemu_monitor.c).
func qemuEnded() *regexp.Regexp {
	return regexp.MustCompile(`(?:process exited while connecting to monitor|QEMU unexpectedly closed the monitor(?: \(vm='[^']*'\))?): `)
}

// lastWords is QEMU's last line, with the hints that follow it, or libvirt's whole sentence where QEMU said nothing.
func lastWords(text string) string {
	said := qemuEnded().FindStringIndex(text)
	if said == nil {
		return "libvirt: " + oneLine(text)
	}
	lines := strings.Split(strings.TrimSpace(text[said[1]:]), "\n")
	for i, line := range slices.Backward(lines) {
		m := qemuLine().FindStringSubmatch(line)
		switch {
		case m == nil:
		case i > 0 && strings.HasPrefix(m[1], hint):
			lines[i] = strings.TrimPrefix(m[1], hint)
		default:
			return "qemu: " + strings.Join(append([]string{m[1]}, lines[i+1:]...), "; ")
		}
	}
	return fmt.Sprintf("qemu: %s", lines[len(lines)-1])
}
