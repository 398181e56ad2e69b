#!/bin/sh
# Builds podlane/web:1, the image of docs/examples, from a static busybox: nothing is pulled.
set -eu

python=/opt/podlane/current/bin/python
busybox=$(dirname "$0")/../busybox
[ -f "$busybox" ] || busybox=$(command -v busybox) || {
    echo "image: no busybox here: name a static one with PODLANE_VAGRANT_BUSYBOX" >&2
    exit 1
}

$python - "$busybox" <<'END' | docker import --change 'CMD ["/start"]' --change 'EXPOSE 8080' - podlane/web:1 >/dev/null
import sys
from pathlib import Path

from podlane.lab.images import web_tar

sys.stdout.buffer.write(web_tar(Path(sys.argv[1])))
END
echo "image: podlane/web:1 is there"
