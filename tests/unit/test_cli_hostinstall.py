"""`podlane host install` as it is typed: all that can be told from the line is told before anything is looked at."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from click.testing import CliRunner

from podlane.cli.main import cli
from podlane.pki import files, profile
from podlane.pki.authority import Authority

pytestmark = pytest.mark.unit

JOIN = "--role node --join https://192.0.2.1:10261"
MISTAKES = {
    "": "Error: Missing option '--role'",
    "--role node": "error: install: --join: a node needs --join URL --token TOKEN, or --etcd URL",
    f"{JOIN} --token abc": "error: read join token: expected ID.SECRET.CAHASH (8, 22 and 43 characters)",
    "--role all --network x": 'error: init: Network: expected a network such as 10.5.0.0/16, got "x"',
    "--role all --network 10.96.0.0/16": "error: init: --service-cidr: 10.96.0.0/16 overlaps the pods' network",
    "--role all --mtu big": "Error: Invalid value for '--mtu': 'big' is not a valid integer.",
    "--role all --timeout 0": "Error: Invalid value for '--timeout': 0.0 is not in the range",
}


def install(line: str) -> tuple[int, str]:
    done = CliRunner().invoke(cli, ["host", "install", *line.split()], prog_name="podlane")
    return done.exit_code, done.stderr


@pytest.mark.parametrize("line", MISTAKES)
def test_what_is_typed_wrong(line: str) -> None:
    code, said = install(line)
    assert MISTAKES[line] in said
    assert code == 2


def test_certificates_that_are_given_are_looked_at_first(tmp_path: Path) -> None:
    line = f"--role node --etcd https://192.0.2.1:2379 --ca {tmp_path}/ca.pem --cert-dir {tmp_path}"
    (tmp_path / "ca.pem").write_text("")
    assert install(line) == (1, f"error: read {tmp_path}/netd.pem: No such file or directory\n")
    now = datetime.now(UTC)
    authority = Authority.create(tmp_path / "authority", now=now)
    for daemon, begin in (("netd", now), ("proxyd", now - timedelta(days=9)), ("agent", now)):
        files.issue_into(tmp_path, daemon, authority, profile.node_daemon(daemon, "n1"), now=begin, days=5)
    ended = f"{now - timedelta(days=4):%Y-%m-%d}"
    assert install(line) == (2, f"error: install: of the certificates given: proxyd.pem has expired ({ended})\n")
    (tmp_path / "ca.pem").write_text("")
    assert install(line) == (2, "error: install: of the certificates given: ca.pem cannot be read\n")
