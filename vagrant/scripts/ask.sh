#!/bin/sh
# ask.sh NAME ADDRESS: asks a service forty times from this machine and says which pods answered.
set -eu

exec /opt/podlane/current/bin/python - "$1" "$2" <<'END'
import sys
from collections import Counter
from urllib.request import urlopen

name, address = sys.argv[1:]
answers = Counter(urlopen(f"http://{address}/", timeout=5).read().decode().strip() for _ in range(40))
print(f"  {name} → {address}   " + "  ".join(f"{pod}: {count}" for pod, count in sorted(answers.items())))
END
