"""Endpoints, credentials and the options that give them."""

from __future__ import annotations

import click
import pytest
from click.testing import CliRunner

from podlane.errors import Invalid
from podlane.store.config import StoreConfig, parse_endpoints
from podlane.store.options import store_options, store_options_from

pytestmark = pytest.mark.unit


@pytest.mark.parametrize(
    ("endpoint", "cafile", "target"),
    [
        ("http://10.0.0.1:2379", "", ("10.0.0.1:2379", False)),
        ("https://etcd.example:4001", "", ("etcd.example:4001", True)),
        ("10.0.0.1:2379", "", ("10.0.0.1:2379", False)),
        ("10.0.0.1:2379", "ca.pem", ("10.0.0.1:2379", True)),
        ("http://10.0.0.1", "ca.pem", ("10.0.0.1:2379", False)),
        ("[fd00::1]:1234", "", ("[fd00::1]:1234", False)),
        ("http://[fd00::1]", "", ("[fd00::1]:2379", False)),
        ("localhost", "", ("localhost:2379", False)),
    ],
)
def test_endpoints(endpoint: str, cafile: str, target: tuple[str, bool]) -> None:
    assert StoreConfig(endpoints=(endpoint,), cafile=cafile).targets == (target,)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"endpoints": ()}, "endpoints: expected at least one"),
        ({"endpoints": ("ftp://a",)}, r"endpoints\[0\]: expected scheme http or https"),
        ({"endpoints": ("http://ok", "http://a:b")}, r"endpoints\[1\]: expected URL"),
        ({"endpoints": ("http://a/v3",)}, "expected .*host"),
        ({"endpoints": ("http://u:p@a",)}, "expected .*host"),
        ({"endpoints": ("http://",)}, "expected .*host"),
        ({"certfile": "c"}, "certfile: a client certificate needs both"),
        ({"keyfile": "c"}, "certfile: a client certificate needs both"),
        ({"password": "p"}, "password: given without a username"),
        ({"timeout": 0}, "timeout: expected seconds > 0"),
    ],
)
def test_mistakes(fields: dict[str, object], message: str) -> None:
    with pytest.raises(Invalid, match=message):
        StoreConfig(**fields)  # type: ignore[arg-type]


def test_every_mistake_is_told_at_once() -> None:
    with pytest.raises(Invalid) as caught:
        StoreConfig(endpoints=("ftp://a", "http://b:c"), password="p")
    assert len(caught.value.errors) == 3


def test_the_password_is_not_shown() -> None:
    assert "geheim" not in repr(StoreConfig(username="u", password="geheim"))


def test_parse_endpoints() -> None:
    assert parse_endpoints(" http://a:1/, b:2 ,,") == ("http://a:1", "b:2")


@click.command()
@click.argument("word")
@store_options
def command(word: str, store_config: StoreConfig) -> None:
    click.echo(f"{word} {store_config.endpoints} {store_config.cafile} {store_config.username}")


def test_options_and_environment() -> None:
    runner = CliRunner()
    assert "('http://127.0.0.1:2379',)" in runner.invoke(command, ["w"]).output
    env = {"PODLANE_ETCD_ENDPOINTS": "http://a:1,http://b:2", "PODLANE_ETCD_USERNAME": "u"}
    result = runner.invoke(command, ["w", "--etcd-cafile", "ca"], env=env)
    assert result.output == "w ('http://a:1', 'http://b:2') ca u\n"


@click.command()
@store_options_from("NETD", "PODLANE", "FLANNELD")
def several(store_config: StoreConfig) -> None:
    click.echo(f"{store_config.endpoints} {store_config.username} {store_config.password}")


def test_the_first_environment_variable_that_is_set_counts() -> None:
    runner = CliRunner()
    env = {
        "FLANNELD_ETCD_ENDPOINTS": "http://f:1",
        "PODLANE_ETCD_ENDPOINTS": "http://p:1",
        "FLANNELD_ETCD_USERNAME": "f",
        "NETD_ETCD_USERNAME": "",
        "FLANNELD_ETCD_PASSWORD": "f-pw",
        "NETD_ETCD_PASSWORD": "n-pw",
    }
    assert runner.invoke(several, env=env).output == "('http://p:1',) f n-pw\n"
    by_option = runner.invoke(several, ["--etcd-endpoints=o", "--etcd-username=o"], env=env)
    assert by_option.output == "('o',) o n-pw\n"


def test_a_mistake_is_a_usage_error() -> None:
    result = CliRunner().invoke(command, ["w", "--etcd-endpoints", "ftp://x", "--etcd-keyfile", "k"])
    assert result.exit_code == 2
    assert '--etcd-endpoints: expected scheme http or https, got "ftp://x"\n' in result.output
    assert "--etcd-certfile: a client certificate needs both" in result.output
