"""`podlane host install` as it is typed: all that can be told from the line is told before anything is looked at."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from podlane.cli.main import cli

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


@pytest.mark.parametrize("line", MISTAKES)
def test_what_is_typed_wrong(line: str) -> None:
    done = CliRunner().invoke(cli, ["host", "install", *line.split()], prog_name="podlane")
    assert MISTAKES[line] in done.stderr
    assert done.exit_code == 2
