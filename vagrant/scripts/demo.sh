#!/bin/sh
# demo.sh NODES: four replicas of one pod behind one address, once so many nodes are ready; exit code 3 while they are not.
# demo.sh address: prints that address.
set -eu

. "$(dirname "$0")/common.sh"
podlane() { "$PODLANE/podlane" "$@"; }

if [ "$1" = address ]; then
    podlane get service web --no-headers | awk '{print $3}'
    exit
fi
ready=$(podlane get nodes --no-headers | grep -cw Ready) || :
if [ "${ready:-0}" -lt "$1" ]; then
    echo "${ready:-0} of $1 machines are ready; the demonstration follows with the last one"
    exit 3
fi

exec 9>/run/podlane-demo
flock -n 9 || {
    echo "another machine shows the demonstration"
    exit 3
}

say() {
    echo "\$ podlane $*"
    podlane "$@"
}

cd "$(dirname "$0")/.."
say apply -f examples/web-controller.yaml -f examples/web-service.yaml
waited=0
until [ "$(podlane get pods -l app=web --no-headers | grep -cE '1/1 +Running')" -ge 4 ]; do
    if [ $waited -ge 180 ]; then
        podlane get pods -o wide
        podlane events --types=Warning
        echo "waited 180 s in vain until four pods are ready" >&2
        exit 1
    fi
    sleep 1
    waited=$((waited + 1))
done
say get nodes
say get pods -o wide
say get services
