#!/bin/sh
# demo.sh NODES NEW: four replicas of one pod behind one address, once so many nodes are ready; exit code 3 while they are
# not. NEW has just come, and is waited for: what its agent says of it reaches the cluster a little later.
# demo.sh address: prints that address.
set -eu

. "$(dirname "$0")/common.sh"
podlane() { "$PODLANE/podlane" "$@"; }
is_ready() { podlane get nodes --no-headers | grep -qE "^$1 +Ready"; }
four_are_ready() { [ "$(podlane get pods -l app=web --no-headers | grep -cE '1/1 +Running')" -ge 4 ]; }

wait_for() { # tries (one a second), what, command and its arguments
    tries=$1 what=$2
    shift 2
    until "$@"; do
        if [ "$tries" -eq 0 ]; then
            podlane get nodes
            podlane get pods -o wide
            podlane events --types=Warning
            echo "waited in vain until $what" >&2
            exit 1
        fi
        sleep 1
        tries=$((tries - 1))
    done
}

if [ "$1" = address ]; then
    podlane get service web --no-headers | awk '{print $3}'
    exit
fi
wait_for 60 "$2 is ready" is_ready "$2"
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
wait_for 180 "four pods are ready" four_are_ready
say get nodes
say get pods -o wide
say get services
