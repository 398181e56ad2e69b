#!/bin/sh
# ask.sh NAME ADDRESS: asks a service forty times from this machine and says which pods answered; fails if none did.
set -eu

exec /opt/podlane/current/bin/python - "$1" "$2" <<'END'
import sys
import time
from collections import Counter
from urllib.request import urlopen

name, address = sys.argv[1:]


def ask() -> str:
    try:
        return urlopen(f"http://{address}/", timeout=5).read().decode().strip()
    except OSError:  # no pod is ready at this moment, say, on a slow machine
        time.sleep(0.25)
        return "no answer"


answers = Counter(ask() for _ in range(40))
print(f"  {name} → {address}   " + "  ".join(f"{pod}: {count}" for pod, count in sorted(answers.items())))
sys.exit(set(answers) == {"no answer"})
END
