#!/bin/sh
# join.sh NAME SERVER: makes this machine a node of the cluster that SERVER serves, by the token in $PODLANE_TOKEN.
set -eu

. "$(dirname "$0")/common.sh"

if installed; then
    sh "$BUNDLE" upgrade
else
    # No address, no interface: it is the one that leads to the server, and never the NAT's.
    sh "$BUNDLE" install --role node --name "$1" --join "https://$2:10261" --yes ${FIREWALLD:+--firewalld}
fi
sh "$(dirname "$0")/image.sh"
