#!/bin/sh
# Runs in the guest as a systemd service. The last line says how it ended.
set -u
export PODVIRT_PREBUILT=/opt/podvirt/bin PODVIRT_CACHE=/opt/podvirt/cache PATH=/opt/podvirt/bin:$PATH
export KUBECONFIG=/var/lib/podvirt-local/kubeconfig HOME=/root

finish() {
  echo "RESULT: $1"
  sync
  systemctl poweroff --force --no-block
  exit 0
}
fail() {
  tail -n 5 /var/lib/podvirt-local/run/supervisor.log /var/lib/podvirt-local/machines/*/var/log/podvirt/*.log 2>/dev/null
  journalctl --no-pager -n 20 -u podvirt-local.service
  finish "failed: $1"
}

echo "cgroup file system: $(stat -f -c %T /sys/fs/cgroup), init: $(cat /proc/1/comm), $(. /etc/os-release; echo "$PRETTY_NAME")"
links=$(ip -oneline link | wc -l)
mounts=$(wc -l </proc/self/mountinfo)

# An emulated machine is slow: every call waits five minutes and the next one goes on from there.
tries=0
until podvirt-local up; do
  tries=$((tries + 1))
  [ "$tries" -lt 6 ] || fail "up"
done
systemctl is-active podvirt-local.service || fail "the supervisor is no unit of systemd"
podvirt-local status || fail "status"
podvirt-local load-image /opt/podvirt/cache/images/pause.tar /opt/podvirt/cache/images/tools.tar || fail "load-image"
kubectl apply -f /opt/podvirt/pods.yaml || fail "apply"
kubectl wait --for=condition=Ready pod --all --timeout=600s || { kubectl describe pods | tail -40; fail "Pods"; }
kubectl get nodes,pods -o wide
kubectl exec client -- curl --silent --max-time 60 http://server.default/ | grep "hello from server" || fail "a Service across nodes"
kubectl exec client -- cat /proc/self/cgroup
find /sys/fs/cgroup/system.slice/podvirt-local.service -maxdepth 2 -name 'kubepods' || fail "control groups"
[ -d /sys/fs/cgroup/system.slice/podvirt-local.service/node1/kubepods ] || fail "Pods are not in the node's delegated group"

podvirt-local down --purge || fail "down"
systemctl is-active podvirt-local.service && fail "the unit still runs"
[ "$(ip -oneline link | wc -l)" = "$links" ] || fail "a link is left"
[ "$(wc -l </proc/self/mountinfo)" = "$mounts" ] || fail "a mount is left"
[ -z "$(losetup --list --noheadings)" ] || fail "a loop device is left"
[ ! -e /var/lib/podvirt-local ] || fail "state is left"
finish "passed"
