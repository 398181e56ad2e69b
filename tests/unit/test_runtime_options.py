from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from podlane.errors import PodlaneError
from podlane.runtime import log
from podlane.runtime.health import HealthServer
from podlane.runtime.options import DaemonOptions, daemon_options

pytestmark = pytest.mark.unit


@click.command()
@daemon_options("kube-thing", healthz_port=8471)
@click.option("--own", default=1)
def command(daemon_options: DaemonOptions, own: int) -> None:
    click.echo(f"{daemon_options} {own}")


def test_defaults_options_and_environment() -> None:
    runner = CliRunner()
    assert runner.invoke(command, []).output == f"{DaemonOptions(healthz_port=8471)} 1\n"
    asked = DaemonOptions("debug", "json", "0.0.0.0", 0)
    by_option = ["--log-level=debug", "--log-format=json", "--healthz-ip=0.0.0.0", "--healthz-port=0", "--own=2"]
    assert runner.invoke(command, by_option).output == f"{asked} 2\n"
    by_environment = {
        "KUBE_THING_LOG_LEVEL": "debug",
        "KUBE_THING_LOG_FORMAT": "json",
        "KUBE_THING_HEALTHZ_IP": "0.0.0.0",
        "KUBE_THING_HEALTHZ_PORT": "0",
    }
    assert runner.invoke(command, [], env=by_environment).output == f"{asked} 1\n"


def test_the_port_can_be_none() -> None:
    result = CliRunner().invoke(command, ["--healthz-port=none"])
    assert result.output == f"{DaemonOptions(healthz_port=None)} 1\n"


@pytest.mark.parametrize("bad", ["65536", "-1", "http", "", "٣"])
def test_a_bad_port_is_refused(bad: str) -> None:
    result = CliRunner().invoke(command, [f"--healthz-port={bad}"])
    assert result.exit_code == 2
    assert f"expected a port from 0 to 65535 or 'none', got {bad!r}" in result.output


@pytest.mark.parametrize("bad", ["localhost", "10.0.0", ""])
def test_a_bad_address_is_refused(bad: str) -> None:
    result = CliRunner().invoke(command, [f"--healthz-ip={bad}"])
    assert result.exit_code == 2
    assert f"expected an IP address, got {bad!r}" in result.output


@click.command()
@daemon_options("netd", healthz_port=1, also_from=("FLANNELD",), zero_is_none=True)
def like_flannel(daemon_options: DaemonOptions) -> None:
    click.echo(daemon_options)


def test_as_flanneld_has_them() -> None:
    runner = CliRunner()
    for no_port in ("0", "00", "none"):
        result = runner.invoke(like_flannel, [f"--healthz-port={no_port}"])
        assert result.output == f"{DaemonOptions(healthz_port=None)}\n"
    flannels = {"FLANNELD_HEALTHZ_IP": "0.0.0.0", "FLANNELD_HEALTHZ_PORT": "8471", "FLANNELD_LOG_LEVEL": "debug"}
    assert runner.invoke(like_flannel, env=flannels).output == f"{DaemonOptions('info', 'logfmt', '0.0.0.0', 8471)}\n"
    both = flannels | {"NETD_HEALTHZ_IP": "::1", "NETD_HEALTHZ_PORT": ""}
    assert runner.invoke(like_flannel, env=both).output == f"{DaemonOptions('info', 'logfmt', '::1', 8471)}\n"


def test_the_daemon_it_makes_listens_and_logs_as_asked(capsys: pytest.CaptureFixture[str]) -> None:
    taken = HealthServer("127.0.0.1", 0)
    try:
        with pytest.raises(PodlaneError, match="Address already in use"):
            DaemonOptions(healthz_port=taken.port).make_daemon("x")
    finally:
        taken.close()
        log.configure()
    options = DaemonOptions(log_level="error", healthz_port=None)
    try:
        daemon = options.make_daemon("x")
        assert daemon.name == "x"
        log.get_logger("x").warning("unheard")
        assert "unheard" not in capsys.readouterr().err
    finally:
        log.configure()


@click.command()
@daemon_options("proxyd", healthz_port=1, metrics_clients="loopback")
def private(daemon_options: DaemonOptions) -> None:
    click.echo(daemon_options)


def test_metrics_can_be_for_clients_on_the_node() -> None:
    runner = CliRunner()
    assert DaemonOptions().metrics_clients == "all"
    asked = DaemonOptions(healthz_port=1, metrics_clients="loopback")
    assert runner.invoke(private, []).output == f"{asked}\n"
    open_to_all = f"{DaemonOptions(healthz_port=1)}\n"
    assert runner.invoke(private, ["--metrics-clients=all"]).output == open_to_all
    assert runner.invoke(private, env={"PROXYD_METRICS_CLIENTS": "all"}).output == open_to_all
    assert runner.invoke(command, ["--metrics-clients=all"]).exit_code == 2  # only where the daemon has it
