"""Which keys on a host are of use to it: files and a time in, what is wrong with them out."""

from __future__ import annotations

import dataclasses
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from podlane.errors import UsageError
from podlane.host import conflict, install
from podlane.host.install import look, look_at_keys
from podlane.host.jointokens import ca_hash
from podlane.host.keystate import KeyState, judge
from podlane.host.layout import ETCD_DATA, PKI
from podlane.host.options import InstallOptions
from podlane.host.system import Found
from podlane.pki import files, profile
from podlane.pki.authority import Authority
from tests.unit.host_world import ALL, BUNDLE, NODE, installed, machine
from tests.unit.test_host_install import FURTHER, commands

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 29, tzinfo=UTC)
YEARS_LATER = NOW + timedelta(days=500)


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("ours"), now=NOW)


@pytest.fixture(scope="module")
def other(tmp_path_factory: pytest.TempPathFactory) -> Authority:
    return Authority.create(tmp_path_factory.mktemp("other"), now=NOW)


@pytest.fixture
def keys(authority: Authority, tmp_path: Path) -> dict[str, bytes]:
    """Of a node that has joined."""
    files.issue_into(tmp_path, "netd", authority, profile.node_daemon("netd", "host1"), now=NOW)
    return {path.name: path.read_bytes() for path in tmp_path.iterdir()}


def token(of: Authority) -> str:
    return f"abcdefgh.{'x' * 22}.{ca_hash(of.bundle)}"


def test_good_ones(keys: dict[str, bytes], authority: Authority) -> None:
    assert sorted(keys) == ["ca.pem", "netd.key", "netd.pem"]
    assert judge(keys, NOW) == judge(keys, NOW, token=token(authority)) == judge({}, NOW) == KeyState()


def test_those_that_have_ended(keys: dict[str, bytes], authority: Authority) -> None:
    ended = KeyState(("netd.pem has expired (2027-11-29)",))
    assert judge(keys, YEARS_LATER) == judge(keys, YEARS_LATER, token=token(authority)) == ended


def test_those_of_another_cluster(keys: dict[str, bytes], other: Authority) -> None:
    assert judge(keys, NOW, token=token(other)) == KeyState(("they are of another authority than the token",), True)
    mixed = keys | {"ca.pem": other.bundle.encode()}
    assert judge(mixed, NOW) == KeyState(("netd.pem is by an authority that is not in ca.pem",))
    assert judge(mixed, NOW, ours=False) == KeyState()


def test_those_that_cannot_be_read(keys: dict[str, bytes]) -> None:
    assert judge(keys | {"netd.pem": b"\xff"}, NOW) == KeyState(("netd.pem cannot be read",))
    assert judge(keys | {"ca.pem": b"x"}, NOW) == KeyState(("ca.pem cannot be read",))
    with pytest.raises(UsageError, match=r"^read join token: expected ID\.SECRET\.CAHASH"):
        judge(keys, NOW, token="x")


def test_one_by_the_next_authority_which_the_one_before_vouches_for(
    keys: dict[str, bytes], authority: Authority, tmp_path: Path
) -> None:
    files.issue_into(tmp_path, "netd", authority.succeeded(now=NOW), profile.node_daemon("netd", "host1"), now=NOW)
    assert judge(keys | {"netd.pem": (tmp_path / "netd.pem").read_bytes()}, NOW) == KeyState()


FAULTS = KeyState(("netd.pem has expired (2027-11-29)",))


def again(options: InstallOptions, state: KeyState) -> str:
    fake, host = installed(options), machine()
    actual = dataclasses.replace(look(fake, install.files(options, host, BUNDLE)), key_state=state)
    return commands(install.plan(options, host, BUNDLE, actual, token="t0ken"))


def test_a_host_whose_keys_are_of_no_use_joins_anew() -> None:
    program = "/opt/podlane/versions/1.0.0-01234567/bin/podlane"
    assert again(NODE, FAULTS) == (
        "# keys\ninstall -d -m 0755 /etc/podlane\ninstall -d -m 0700 /etc/podlane/pki\n"
        f"{program} host join --server https://192.0.2.1:10261 --role node --name host1 "
        "--address 192.0.2.7 <<< (the token)\n\n"
        "# netd\nsystemctl restart podlane-netd.service\n\n"
        "# proxyd\nsystemctl restart podlane-proxyd.service\n\n"
        "# agent\nsystemctl restart podlane-agent.service\n"
    )
    assert again(NODE, KeyState()) == "\n"


def test_who_has_the_authority_makes_them_anew() -> None:
    text = again(ALL, FAULTS)
    assert "podlane host keys --role all" in text
    assert "systemctl restart podlane-etcd.service\n\n# cluster\n" in text


def test_keys_are_looked_at_where_they_are() -> None:
    fake = installed(NODE)
    assert look_at_keys(fake, NODE, NOW).faults == ("ca.pem cannot be read",)  # the fake's keys are none


def test_a_member_of_another_clusters_etcd_is_not_taken_along() -> None:
    fake = installed(FURTHER)
    fake.files[f"{ETCD_DATA}/member"] = Found("folder")
    foreign = dataclasses.replace(look(fake, ()), key_state=KeyState(("they are …",), foreign=True))
    assert conflict.of_installation(foreign, FURTHER, machine()) == (
        f"{ETCD_DATA} and the keys in {PKI} are of another cluster than the token; "
        "to give them up, uninstall --purge first"
    )
    assert conflict.of_installation(dataclasses.replace(foreign, etcd_data=False), FURTHER, machine()) == ""


def test_an_upgrade_does_not_join() -> None:
    actual = dataclasses.replace(look(installed(NODE), ()), key_state=FAULTS)
    assert conflict.of_upgrade(actual, NODE) == (
        f"the keys in {PKI}: netd.pem has expired (2027-11-29); mend that first, with the version that is here: "
        "install --join URL --token TOKEN"
    )
    assert conflict.of_upgrade(actual, ALL) == ""
