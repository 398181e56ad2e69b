#!/bin/sh
# token.sh NODE: prints a token by which NODE may join within ten minutes. Fails while this machine serves none.
set -eu

. "$(dirname "$0")/common.sh"
systemctl is-active --quiet podlane-join.service
"$PODLANE/podlane" join-token create --node "$1" --ttl 10m -o json | sed -n 's/^ *"token": "\(.*\)",*$/\1/p'
