from __future__ import annotations

import pytest

from podlane.cli import connection
from podlane.cli.connection import ConfigFile, EtcdSection, read_config, resolve
from podlane.cli.session import Given
from podlane.errors import UsageError

pytestmark = pytest.mark.unit


def typed(**options: str) -> dict[str, Given]:
    return {name: Given(value, typed=True) for name, value in options.items()}


def env(**options: str) -> dict[str, Given]:
    return {name: Given(value, typed=False) for name, value in options.items()}


def test_endpoints_and_tls():
    options = typed(etcd_endpoints="https://a:2379,b:2379", etcd_cafile="ca", etcd_username="u", etcd_password="p")
    config = resolve(options)
    assert config.endpoints == ("https://a:2379", "b:2379")
    assert (config.cafile, config.username, config.password) == ("ca", "u", "p")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (typed(etcd_endpoints="a", lab="x"), "--etcd-endpoints and --lab: expected one of the two, got both"),
        (env(etcd_endpoints="a", lab="x"), "--etcd-endpoints and --lab: expected one of the two, got both"),
        (typed(etcd_endpoints="ftp://a"), "expected scheme http or https"),
        (typed(etcd_endpoints="a", etcd_certfile="c"), "needs both its file and its key file"),
        (typed(config="/nonexistent/config.yaml"), "read /nonexistent/config.yaml: No such file"),
    ],
)
def test_what_makes_no_sense(options, message):
    with pytest.raises(UsageError, match=message):
        resolve(options)


def test_typed_beats_the_environment():
    assert resolve({**env(lab="x"), **typed(etcd_endpoints="a:1")}).endpoints == ("a:1",)


def test_a_configuration_file(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_text("etcd:\n  endpoints: [http://a:2379, http://b:2379]\n  username: ops\n")
    assert read_config(path) == ConfigFile(
        etcd=EtcdSection(endpoints=("http://a:2379", "http://b:2379"), username="ops")
    )
    config = resolve({**typed(config=str(path)), **env(etcd_password="secret")})
    assert (config.endpoints, config.username, config.password) == (
        ("http://a:2379", "http://b:2379"),
        "ops",
        "secret",
    )
    # whoever names another etcd does not want to send it this one's user
    assert resolve(typed(config=str(path), etcd_endpoints="c:1")).username == ""


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("etcd: {endpoints: a}\n", "Expected `array`, got `str` - at `\\$.etcd.endpoints`"),
        ("etcd: {endpoints: [a], user: x}\n", "unknown field `user` - at `\\$.etcd`"),
        ("etcd: [\n", "while parsing"),
        ("etcd: {endpoints: [a]}\nlab: x\n", "expected etcd or lab, got both"),
        ("[1]\n", "Expected `object`"),
    ],
)
def test_a_configuration_file_that_is_wrong(tmp_path, text, message):
    path = tmp_path / "config.yaml"
    path.write_text(text)
    with pytest.raises(UsageError, match=message) as caught:
        resolve(typed(config=str(path)))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize(
    ("labs", "found"),
    [(set(), "no lab is running"), ({"a", "b"}, "2 labs are running (a, b)")],
)
def test_nothing_says_where_etcd_is(tmp_path, labs, found):
    with pytest.raises(UsageError) as caught:
        connection.fallback(tmp_path / "none.yaml", sorted(labs))
    text = str(caught.value)
    assert found in text
    for way in ("--etcd-endpoints URL", "--lab NAME", "none.yaml"):
        assert way in text


def test_the_only_lab_is_taken(tmp_path):
    assert connection.fallback(tmp_path / "none.yaml", ["only"]) == "only"
