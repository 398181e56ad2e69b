from __future__ import annotations

import subprocess
import sys

import pytest
from click.testing import CliRunner

from scheduler.cli import main

pytestmark = pytest.mark.unit


def test_both_commands_are_listed():
    result = CliRunner().invoke(main, ["--help"])
    assert result.exit_code == 0
    assert "agent" in result.output
    assert "run" in result.output


def test_the_control_plane_does_not_load_docker():
    script = (
        "import sys\n"
        "import scheduler.cli, scheduler.daemon\n"
        "print(*(m for m in sys.modules if m.partition('.')[0] in {'docker', 'pyroute2', 'scapy', 'rich'}))"
    )
    loaded = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=60)
    assert loaded.stdout.strip() == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["--leader-ttl", "1"], "x>=2"),
        (["--etcd-endpoints", "ftp://etcd"], "expected scheme http or https"),
    ],
)
def test_mistakes_are_usage_errors(arguments, complaint):
    result = CliRunner().invoke(main, ["run", *arguments])
    assert result.exit_code == 2
    assert complaint in result.output
