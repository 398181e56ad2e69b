"""`python -m podlane.pki.revocationcheck CAFILE`: a list on standard input, what it says on standard output.

Owns: nothing but its own process. Why one: an agent would keep 10 MB of the `cryptography` package
in memory for a check that it makes when a list has changed. Exits with 1 and one line when the list
is not to be believed.
"""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from pathlib import Path

import msgspec

from podlane.errors import PodlaneError
from podlane.pki import certificates as c
from podlane.pki import revocations


def main(cafile: str) -> None:
    try:
        trusted = c.read_certificates(Path(cafile).read_text())
        found = revocations.checked(sys.stdin.read(), trusted, datetime.now(UTC))
    except (OSError, ValueError, PodlaneError) as error:
        sys.exit(str(error))
    told = {"number": found.number, "serials": [f"{each:x}" for each in sorted(found.serials)]}
    sys.stdout.write(msgspec.json.encode(told).decode())


if __name__ == "__main__":
    main(sys.argv[1])
