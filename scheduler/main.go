// Command scheduler is kube-scheduler with podvirt's plugin VirtualMachine (docs/scheduler.md).
package main

import (
	"os"

	"k8s.io/component-base/cli"
	_ "k8s.io/component-base/logs/json/register" // --logging-format=json
	_ "k8s.io/component-base/metrics/prometheus/clientgo"
	_ "k8s.io/component-base/metrics/prometheus/version"
	"k8s.io/kubernetes/cmd/kube-scheduler/app"

	"podvirt.dev/scheduler/internal/virtualmachine"
)

func main() {
	command := app.NewSchedulerCommand(app.WithPlugin(virtualmachine.Name, virtualmachine.New))
	os.Exit(cli.Run(command))
}
