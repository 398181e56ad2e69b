#!/bin/sh
# server.sh NAME ADDRESS: makes this machine the cluster's server, and a node of it.
set -eu

. "$(dirname "$0")/common.sh"

if installed; then
    sh "$BUNDLE" upgrade
else
    # The address is named: with libvirt each machine has two networks by which it reaches the others.
    sh "$BUNDLE" install --role all --name "$1" --address "$2" --yes ${FIREWALLD:+--firewalld}
fi
sh "$(dirname "$0")/image.sh"
