"""proxyd's command line: what is checked before anything starts, and what help says."""

from __future__ import annotations

import pytest
from click.testing import CliRunner

from proxyd.cli import main

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("option", ["--cluster-cidr", "--service-cidr", "--nodeport-addresses"])
def test_a_network_is_checked_before_anything_starts(option):
    result = CliRunner().invoke(main, ["run", option, "10.5.0.0/33"])
    assert result.exit_code == 2
    assert "expected a network such as 10.5.0.0/16 or fd00:5::/48" in result.output
    assert 'got "10.5.0.0/33"' in result.output


def test_help_names_the_environment_variables():
    result = CliRunner().invoke(main, ["run", "--help"])
    assert result.exit_code == 0
    for name in (
        "PROXYD_CLUSTER_CIDR",
        "PROXYD_SERVICE_CIDR",
        "PROXYD_NODEPORT_ADDRESSES",
        "PROXYD_LOG_LEVEL",
        "PODLANE_ETCD_ENDPOINTS",
    ):
        assert name in result.output
