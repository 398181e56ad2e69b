"""The host's files behind their interface: the real ones and the fake's keep the same rules."""

from __future__ import annotations

from pathlib import Path

import pytest

from podlane.errors import PodlaneError
from podlane.host.fake import FakeSystem
from podlane.host.survey import there
from podlane.host.system import Found, RealSystem, System

pytestmark = pytest.mark.unit


ATOMIC = {"opt": "var/opt", "home": "var/home", "root": "var/roothome", "srv": "var/srv", "mnt": "var/mnt"}
"""Of an image-based host, on which nothing is in /var yet."""


@pytest.fixture(params=["real", "atomic", "fake"])
def host(request: pytest.FixtureRequest, tmp_path: Path) -> System:
    if request.param == "atomic":
        for name, target in ATOMIC.items():
            (tmp_path / name).symlink_to(target)
    return FakeSystem() if request.param == "fake" else RealSystem(tmp_path)


def test_what_is_not_there(host: System) -> None:
    assert host.look("/etc/podlane") is None
    assert host.names("/etc/podlane") == ()
    host.remove("/etc/podlane")


def test_a_file_and_its_folder(host: System) -> None:
    host.write("/etc/podlane/a.env", b"x", 0o600)
    assert host.look("/etc/podlane/a.env") == Found("file", b"x", mode=0o600)
    found = host.look("/etc/podlane")
    assert found is not None
    assert found.kind == "folder"
    assert host.names("/etc/podlane") == ("a.env",)


def test_a_folder_is_made_once(host: System) -> None:
    host.make_folder("/var/lib/podlane", 0o700)
    assert host.look("/var/lib/podlane") == Found("folder", mode=0o700)
    with pytest.raises(PodlaneError, match=r"^make folder /var/lib/podlane: File exists"):
        host.make_folder("/var/lib/podlane", 0o755)


def test_a_link_is_led_elsewhere(host: System) -> None:
    host.make_folder("/opt/podlane", 0o755)
    host.link("/opt/podlane/current", "versions/1")
    host.link("/opt/podlane/current", "versions/2")
    assert host.look("/opt/podlane/current") == Found("link", target="versions/2")
    assert host.names("/opt/podlane") == ("current",)


def test_a_folder_goes_with_what_is_in_it(host: System) -> None:
    host.write("/opt/podlane/versions/1/x", b"", 0o644)
    host.make_folder("/opt/podlane/keep", 0o755)
    host.remove("/opt/podlane/versions")
    assert host.names("/opt/podlane") == ("keep",)


def test_what_goes_below_a_link_leaves_the_link(tmp_path: Path) -> None:
    (tmp_path / "opt").symlink_to("var/opt")
    host = RealSystem(tmp_path)
    assert host.look("/opt/podlane") is None
    host.make_folder("/opt/podlane", 0o755)
    host.link("/opt/podlane/current", "versions/1")
    assert host.look("/opt/podlane/current") == Found("link", target="versions/1")
    assert (tmp_path / "var/opt/podlane/current").is_symlink()
    host.remove("/opt/podlane")
    assert host.look("/opt") == Found("link", target="var/opt")
    assert host.names("/opt") == ()


def test_where_a_folder_would_be_made(tmp_path: Path) -> None:
    (tmp_path / "opt").symlink_to(tmp_path / "var/opt")
    (tmp_path / "var").mkdir()
    assert there(f"{tmp_path}/opt") == f"{tmp_path}/var"
    (tmp_path / "var/opt").mkdir()
    assert there(f"{tmp_path}/opt") == f"{tmp_path}/var/opt"
    assert there(f"{tmp_path}/etc/podlane") == str(tmp_path)
