#!/bin/sh
# token.sh NODE: prints a token by which NODE may join within ten minutes. Fails while this machine serves none, with exit
# code 4 if it will not.
set -eu

. "$(dirname "$0")/common.sh"
[ ! -e "$(dirname "$0")/../failed" ] || exit 4
systemctl is-active --quiet podlane-join.service
"$PODLANE/podlane" join-token create --node "$1" --ttl 10m -o json | sed -n 's/^ *"token": "\(.*\)",*$/\1/p'
