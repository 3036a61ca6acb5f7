# Everything that podvirt's source tree can do. "make help" prints this list from the comments below.
SHELL := /bin/bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-print-directory

export PODVIRT_CACHE ?= /var/cache/podvirt
export PODVIRT_STATE ?= /var/lib/podvirt-local
# A proxy of the environment is for the outside: the local cluster is on this host.
export NO_PROXY := $(if $(NO_PROXY),$(NO_PROXY),),127.0.0.1,localhost,10.197.0.0/16,10.198.0.0/16,10.199.0.0/16

GO       ?= go
GOTEST    = $(GO) test -count=1 $(TESTFLAGS)
LOCAL     = $(GO) run ./test/cluster/local
IMAGES    = $(GO) run ./images
BINARIES := launcher scheduler controller csi-hostpath cni-bridge device-plugin
PACKAGES  = $(shell $(GO) list ./... | grep -v '/test/\(kernel\|guests\|launcher\|cluster/suite\|cluster/lifecycle\|cluster/cgroup2\|bench\)')
# Packages whose tests run in a guest; they are static and have their files in testdata.
IN_GUEST  = ./test/kernel/network ./test/kernel/numa ./test/kernel/iommu ./test/kernel/devices ./cni-bridge/internal/plugin ./cni-bridge/internal/nat \
            ./cni-bridge/internal/filter ./internal/nicalias

.PHONY: help
help: ## print this list
	@awk -F ':.*## ' '/^[a-z0-9-]+:.*## / { printf "  make %-18s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

.PHONY: setup
setup: ## install the Debian packages that everything below needs (root)
	@hack/setup.sh

.PHONY: build
build: ## build the binaries into bin/
	@mkdir -p bin
	$(GO) build -o bin/ $(addprefix ./,$(wildcard $(BINARIES)))

.PHONY: programs
programs: ## build Kubernetes, etcd, containerd and kin into $PODVIRT_CACHE/bin
	@$(LOCAL) build

.PHONY: images
images: ## build the container and guest images into $PODVIRT_CACHE/images
	@$(IMAGES) build all

.PHONY: generate
generate: ## write generated files again
	$(GO) generate ./...

.PHONY: check
check: fmt vet lint test-unit ## formatting, vet, lint, unit and arch tests

.PHONY: fmt
fmt: ## fail when a file is not formatted
	@files=$$(gofmt -l $$(git ls-files --cached --others --exclude-standard '*.go')); test -z "$$files" || { echo "run gofmt -w on:"; echo "$$files"; exit 1; }

.PHONY: vet
vet: ## go vet
	$(GO) vet ./...

.PHONY: lint
lint: ## golangci-lint, built from test/programs/lint
	@mkdir -p $(PODVIRT_CACHE)/bin
	cd test/programs/lint && $(GO) build -o $(PODVIRT_CACHE)/bin/golangci-lint github.com/golangci/golangci-lint/v2/cmd/golangci-lint
	$(PODVIRT_CACHE)/bin/golangci-lint run ./...

.PHONY: test
test: setup test-unit test-kernel test-conformance test-launcher test-cluster ## every level of tests, in this order

.PHONY: test-unit
test-unit: programs ## tests that need no guest and no cluster, and the arch tests
	$(GOTEST) -p=4 ./scheduler $(PACKAGES) # they wait more than they compute; the longest first

.PHONY: test-kernel
test-kernel: programs ## tests inside QEMU with a full Debian kernel, and boots of the test guests
	@mkdir -p bin
	@$(IMAGES) rootfs kernel launcher >/dev/null
	@$(IMAGES) disk guest-tiny guest-debian >/dev/null
	$(GO) build -o bin/ ./test/kernel/runvm
	$(GOTEST) ./test/kernel/vm
	CGO_ENABLED=0 $(GOTEST) -p=2 -timeout=20m -exec $(CURDIR)/bin/runvm $(IN_GUEST)
	CGO_ENABLED=0 $(GOTEST) -exec $(CURDIR)/bin/runvm -run=LinuxMountsIt ./launcher/internal/iso9660
	PODVIRT_REQUIRE=1 $(GOTEST) -v -timeout=30m ./test/guests

.PHONY: test-conformance
test-conformance: ## csi-sanity and kin against the built components
	cd test/conformance && $(GOTEST) -v -timeout=20m ./...

.PHONY: test-launcher
test-launcher: images ## the built launcher with real guests on the root file system of its image, without a cluster
	$(GOTEST) -v -timeout=30m -parallel=4 ./test/launcher

.PHONY: test-hardware
test-hardware: images ## virtual hardware as the tools of a Debian guest see it: udev, lsblk, lscpu, dmidecode (2 minutes)
	PODVIRT_REQUIRE=1 PODVIRT_DEBIAN=1 $(GOTEST) -v -timeout=20m -run='^TestDebian$$' ./test/launcher

.PHONY: test-cluster
test-cluster: images ## real guests on the local cluster, which stays up for the next run
	$(GOTEST) -v -timeout=20m ./test/cluster/lifecycle
	@$(LOCAL) install
	$(GOTEST) -v -timeout=60m ./test/cluster/suite/...

.PHONY: test-cgroup2
test-cgroup2: images ## the local cluster inside a Debian 12 guest with systemd and cgroup v2 (slow)
	$(GOTEST) -v -timeout=90m ./test/cluster/cgroup2

.PHONY: soak-cni
soak-cni: ## 5000 ADD and DEL of the CNI plugin, 200 Pods at once 50 times over, and what they leave (half an hour)
	PODVIRT_CNI_ROUNDS=5000 PODVIRT_CNI_PODS=200 PODVIRT_CNI_RACES=50 $(GOTEST) -v -timeout=90m \
		-run='^(TestManyAttachmentsLeaveNothing|TestBridgeOnDemandRace)$$' ./cni-bridge/internal/plugin

.PHONY: test-life
test-life: images ## what make test has no time for: every run policy, kubelet and containerd killed, a minute of pause, an autoscaler (13 minutes)
	PODVIRT_STANDSTILL=60s $(GOTEST) -v -timeout=20m -run='^TestWhileOneStandsStill$$' ./test/launcher
	@$(LOCAL) install
	PODVIRT_LONG=1 $(GOTEST) -v -timeout=30m -run='^(TestRunPolicies|TestNodeProgramsKilled|TestQuota|TestWithoutPolicies|TestAutoscaler)$$' ./test/cluster/suite

.PHONY: test-overhead
STRESS ?= 20s
test-overhead: images ## VMs under stress with exactly the memory that is accounted for them, $STRESS (20s) for each of 12 mixes
	PODVIRT_STRESS=$(STRESS) $(GOTEST) -v -timeout=24h -run='^TestOverhead$$' ./test/launcher

.PHONY: bench-probes
bench-probes: images ## what fifty probes a second cost, $STRESS (20s) for each kind
	PODVIRT_STRESS=$(STRESS) $(GOTEST) -v -timeout=1h -run='^TestProbeCost$$' ./test/launcher

.PHONY: fuzz
FUZZ ?= 1000000x
fuzz: ## generated annotation sets through the parser: $FUZZ, a million (5 minutes)
	$(GO) test -run='^$$' -fuzz='^FuzzParse$$' -fuzztime=$(FUZZ) -fuzzminimizetime=1x ./api

.PHONY: test-devices
test-devices: programs ## devices handed to restricted containers, KVM among them; mediated devices of the kernel's samples (10 minutes)
	@mkdir -p bin
	@$(IMAGES) rootfs kernel launcher mtty >/dev/null
	@$(IMAGES) build launcher >/dev/null
	$(GO) build -o bin/ ./test/kernel/runvm
	CGO_ENABLED=0 PODVIRT_NESTED=1 $(GOTEST) -v -timeout=40m -exec $(CURDIR)/bin/runvm ./test/kernel/devices

.PHONY: test-kvm
KVM_CPUS ?= Opteron_G3 Nehalem qemu64
test-kvm: programs ## the launcher where KVM works, by AMD virtualization that QEMU emulates: VMs under KVM, facts of nodes with four CPUs (5 minutes)
	@mkdir -p bin
	@$(IMAGES) rootfs kernel launcher >/dev/null
	@$(IMAGES) disk guest-tiny >/dev/null
	@$(IMAGES) build launcher >/dev/null
	$(GO) build -o bin/ ./test/kernel/runvm
	CGO_ENABLED=0 $(GOTEST) -v -timeout=40m -exec $(CURDIR)/bin/runvm -run='^TestKVM$$' ./test/launcher
	for cpu in $(KVM_CPUS); do CGO_ENABLED=0 PODVIRT_VM_CPU=$$cpu,vendor=AuthenticAMD,+svm,+npt,+vme,x-force-features=on \
		$(GOTEST) -v -timeout=20m -exec $(CURDIR)/bin/runvm -run='^TestKVMFacts$$' ./test/launcher || exit 1; done

.PHONY: bench-devices
bench-devices: programs ## the device plugin beside the simplest one: time to allocatable, Allocate, memory at 1, 100 and 1000 devices
	$(GO) test -run='^$$' -bench=. -benchtime=1x ./test/bench/devices

.PHONY: test-crash
test-crash: ## csi-hostpath killed after every system call of a volume's life that changes something (10 minutes)
	PODVIRT_TEST_ALL_KILLS=1 $(GOTEST) -v -timeout=60m -run='^TestKilledAfterSystemCalls$$' ./csi-hostpath/internal/program

.PHONY: bench-storage
bench-storage: ## make, clone, snapshot, grow and delete volumes of 10 GiB, and what others feel of a deletion
	$(GOTEST) -v -timeout=30m -run='^$$' -bench=. -benchtime=10x ./csi-hostpath/internal/driver

.PHONY: bench-overhead
bench-overhead: images ## memory and start time of a VM Pod against QEMU by hand and a plain Pod
	@$(LOCAL) install
	$(GOTEST) -v -timeout=30m -run='^$$' -bench=. -benchtime=1x ./test/bench

.PHONY: bench-scheduler
bench-scheduler: programs ## the scheduler against that of Kubernetes with up to 5,000 nodes, and how well VMs are packed
	$(GOTEST) -v -timeout=60m -run='^$$' -bench=. -benchtime=1x ./test/bench/scheduler
	$(GOTEST) -v -run=TestPacking -bench=. ./scheduler/internal/virtualmachine

.PHONY: test-storage
test-storage: images ## what make test has no time for: pools of every kind, VMs that boot from each, shared disks, snapshots (15 minutes)
	@$(IMAGES) build csi-snapshotter snapshot-controller
	@$(LOCAL) install
	PODVIRT_LONG=1 $(GOTEST) -v -timeout=60m \
		-run='^(TestPools|TestClassAndReclaim|TestAccessModes|TestOneDiskManyReaders|TestOneWriter|TestHostilePod|TestSnapshots|TestFrozenSnapshot)$$' ./test/cluster/suite

.PHONY: test-controller
test-controller: images ## the life of a guest in conditions and Events, the controller killed, Pods and claims that it frees (3 minutes)
	@$(LOCAL) install
	PODVIRT_LONG=1 $(GOTEST) -v -timeout=30m -run='^(TestController|TestMadeAgain|TestGoneNode)$$' ./test/cluster/suite

.PHONY: test-network
test-network: images ## what make test has no time for: the CNI plugin taken off the nodes and put back, refusals of the node, 1 GiB by port-forward, further networks by Multus (6 minutes)
	@$(LOCAL) install
	PODVIRT_LONG=1 $(GOTEST) -v -timeout=30m -run='^(TestMultus|TestNetwork|TestNetworkRefusals|TestUninstalledNetwork|TestQEMUKilled)$$' ./test/cluster/suite

.PHONY: bench-net
bench-net: ## ADD and DEL of the CNI plugin against the upstream bridge plugin
	$(GOTEST) -v -timeout=30m -run='^$$' -bench=. -benchtime=1x ./test/bench/net

.PHONY: demo
demo: setup images ## a Debian VM as a Pod on a local Kubernetes; prints how to log in
	@$(LOCAL) demo

.PHONY: stop
stop: ## stop the local cluster; unpacked images stay for the next start
	@$(LOCAL) down

.PHONY: clean-up
clean-up: ## stop the local cluster and remove everything that was built or cached
	@$(LOCAL) down --purge
	rm -rf bin $(PODVIRT_CACHE)
