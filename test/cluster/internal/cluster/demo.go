package cluster

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	_ "embed"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"text/template"
	"time"

	"golang.org/x/crypto/ssh"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"podvirt.dev/internal/atomicfile"
)

const (
	demoNamespace = "podvirt-demo"
	demoVM        = "debian"
	demoUser      = "debian"
	demoPassword  = "podvirt"
	demoTimeout   = 10 * time.Minute // an emulated guest with systemd on a busy machine
)

//go:embed demo.yaml
var demoManifest string

// Demo installs podvirt, starts a Debian VM as a Pod, waits for its login and says how to log in.
func (c *Cluster) Demo(ctx context.Context, out io.Writer) error {
	if err := c.Install(ctx); err != nil {
		return err
	}
	key, public, err := demoKey(filepath.Join(c.Layout.State, "demo"))
	if err != nil {
		return err
	}
	client, err := c.Client()
	if err != nil {
		return err
	}
	accelerator, err := usableAccelerator(ctx, client)
	if err != nil {
		return err
	}
	var manifest bytes.Buffer
	parsed, err := template.New("demo").Parse(demoManifest)
	if err != nil {
		return err
	}
	values := map[string]string{"Namespace": demoNamespace, "VM": demoVM, "User": demoUser, "Password": demoPassword, "Key": public, "Accelerator": accelerator}
	if err := parsed.Execute(&manifest, values); err != nil {
		return err
	}
	kubectl, err := c.program("kubectl")
	if err != nil {
		return err
	}
	wait, cancel := context.WithTimeout(ctx, demoTimeout)
	defer cancel()
	// A VM that is there stays as it is: admission has completed it, and applying the short form again would take that back.
	// Policies that were written a moment ago are in force a moment later.
	err = c.wait(wait, "the VM to be admitted", func() error {
		if _, err := client.CoreV1().Pods(demoNamespace).Get(wait, demoVM, metav1.GetOptions{}); err == nil {
			return nil
		}
		_, err := c.kubectl(wait, kubectl, manifest.String(), "apply", "--server-side", "--force-conflicts", "-f", "-")
		return err
	})
	if err != nil {
		return err
	}
	begin := time.Now()
	if err := c.waitLogin(wait, client); err != nil {
		return err
	}
	fmt.Fprintf(c.Log, "the guest shows its login (waited %s)\n", time.Since(begin).Round(time.Second))
	return c.explain(ctx, client, out, kubectl, key)
}

// usableAccelerator is kvm where every node says that its KVM runs guests, else emulation.
func usableAccelerator(ctx context.Context, client kubernetes.Interface) (string, error) {
	nodes, err := client.CoreV1().Nodes().List(ctx, metav1.ListOptions{})
	if err != nil {
		return "", err
	}
	for _, node := range nodes.Items {
		if node.Labels["podvirt.dev/accelerator"] != "kvm" {
			return "tcg", nil
		}
	}
	return "kvm", nil
}

// waitLogin waits until the guest's serial console, which is the Pod's log, shows a login.
func (c *Cluster) waitLogin(ctx context.Context, client kubernetes.Interface) error {
	fmt.Fprintln(c.Log, "waiting for the guest's login")
	pods := client.CoreV1().Pods(demoNamespace)
	return c.wait(ctx, "the guest's login", func() error {
		pod, err := pods.Get(ctx, demoVM, metav1.GetOptions{})
		if err != nil {
			return err
		}
		for _, s := range pod.Status.ContainerStatuses {
			if s.LastTerminationState.Terminated != nil && s.State.Running == nil {
				return fmt.Errorf("the VM ended: %s", s.LastTerminationState.Terminated.Message)
			}
		}
		log, err := pods.GetLogs(demoVM, &corev1.PodLogOptions{Container: "vm"}).DoRaw(ctx)
		if err != nil {
			return err
		}
		// The line above "debian login: ", which has no end and so reaches no log before somebody types.
		if !bytes.Contains(log, []byte(demoVM+" ttyS0")) {
			return fmt.Errorf("the Pod is %s; its console ends with %q", pod.Status.Phase, log[max(0, len(log)-200):])
		}
		return nil
	})
}

const explanation = `
A Debian VM runs as Pod %[1]s/%[2]s. Log in as %[3]s with password %[4]s:

  serial console   %[5]s attach -it -n %[1]s %[2]s        (leave: ctrl-p ctrl-q)
              or   %[5]s exec -it -n %[1]s %[2]s -c vm -- launcher ctl console
  ssh              ssh -i %[6]s -o StrictHostKeyChecking=no -o UserKnownHostsFile=/dev/null %[3]s@%[7]s
  everything else  %[5]s get pods -A -o wide

Stop the cluster: make stop
`

func (c *Cluster) explain(ctx context.Context, client kubernetes.Interface, out io.Writer, kubectl, key string) error {
	service, err := client.CoreV1().Services(demoNamespace).Get(ctx, demoVM, metav1.GetOptions{})
	if err != nil {
		return err
	}
	command := "KUBECONFIG=" + c.Layout.Kubeconfig() + " " + kubectl
	_, err = fmt.Fprintf(out, explanation, demoNamespace, demoVM, demoUser, demoPassword, command, key, service.Spec.ClusterIP)
	return err
}

// demoKey makes an SSH key, once, and returns its path and the line for authorized_keys.
func demoKey(dir string) (path, public string, err error) {
	path = filepath.Join(dir, "id_ed25519")
	if line, err := os.ReadFile(path + ".pub"); err == nil {
		return path, strings.TrimSpace(string(line)), nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return "", "", err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return "", "", err
	}
	pub, private, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return "", "", err
	}
	block, err := ssh.MarshalPrivateKey(private, "podvirt demo")
	if err != nil {
		return "", "", err
	}
	sshKey, err := ssh.NewPublicKey(pub)
	if err != nil {
		return "", "", err
	}
	line := ssh.MarshalAuthorizedKey(sshKey)
	err = errors.Join(atomicfile.Write(path, pem.EncodeToMemory(block), 0o600), atomicfile.Write(path+".pub", line, 0o644))
	return path, strings.TrimSpace(string(line)), err
}
