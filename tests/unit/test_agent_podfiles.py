"""The files a pod's containers have from their node."""

from __future__ import annotations

from pathlib import Path

import pytest

from podlane.errors import PodlaneError
from scheduler.agent.podfiles import RETRY, PodFiles
from scheduler.agent.runtime import Mount
from scheduler.agent.volumes import EmptyDir

pytestmark = pytest.mark.unit


def files(folder: Path, resolv: str | None = "nameserver 192.0.2.1\n", upstream: str | None = None) -> PodFiles:
    for name, text in (("resolv.conf", resolv), ("upstream.conf", upstream)):
        if text is not None:
            (folder / name).write_text(text)
    return PodFiles(folder / "pods", resolv_conf=folder / "resolv.conf", upstream=folder / "upstream.conf")


def test_the_hosts_file_is_the_kubelet_s_and_stays_as_it_was_added_to(tmp_path: Path) -> None:
    pods = files(tmp_path)
    path = Path(pods.paths().hosts("u1"))
    pods.write_hosts(str(path), "web-1", ["10.5.3.2"])
    lines = path.read_text().splitlines()
    assert lines[0] == "# Podlane-managed hosts file."
    assert lines[1] == "127.0.0.1\tlocalhost"
    assert lines[-1] == "10.5.3.2\tweb-1"
    inode = path.stat().st_ino
    with path.open("a") as file:
        file.write("192.0.2.9\tmine\n")
    pods.write_hosts(str(path), "web-1", ["10.5.3.2"])
    assert path.read_text().endswith("mine\n")
    pods.write_hosts(str(path), "web-1", ["10.5.3.3"])
    assert path.read_text().endswith("10.5.3.3\tweb-1\n")
    assert path.stat().st_ino == inode  # mounts follow it


def test_a_pod_with_two_addresses_has_its_name_at_both(tmp_path: Path) -> None:
    pods = files(tmp_path)
    path = Path(pods.paths().hosts("u1"))
    pods.write_hosts(str(path), "web-1", ["10.5.3.2", "fd00:5:3::2"])
    assert path.read_text().splitlines()[-2:] == ["10.5.3.2\tweb-1", "fd00:5:3::2\tweb-1"]


def test_aliases_follow_and_a_pod_on_the_nodes_network_has_the_nodes_file(tmp_path: Path) -> None:
    (tmp_path / "hosts").write_text("127.0.0.1\tlocalhost\n192.0.2.7\tme")
    pods = PodFiles(tmp_path / "pods", hosts=tmp_path / "hosts")
    path = Path(pods.paths().hosts("u1"))
    pods.write_hosts(str(path), "p", ["10.5.3.2"], aliases=["10.1.2.3\tdb\tdb.local"])
    assert path.read_text().endswith("10.5.3.2\tp\n\n# Entries added by HostAliases.\n10.1.2.3\tdb\tdb.local\n")
    pods.write_hosts(str(path), "p", [], aliases=["10.1.2.3\tdb"], on_host=True)
    assert path.read_text() == (
        "# Podlane-managed hosts file (host network).\n127.0.0.1\tlocalhost\n192.0.2.7\tme\n"
        "# Entries added by HostAliases.\n10.1.2.3\tdb\n"
    )


def test_other_users_of_the_node_see_no_pods_files(tmp_path: Path) -> None:
    pods = files(tmp_path)
    (tmp_path / "pods").mkdir(mode=0o755)
    pods.write_hosts(pods.paths().hosts("u1"), "p", ["10.5.3.2"])
    assert (tmp_path / "pods").stat().st_mode & 0o777 == 0o750


def test_a_hosts_file_that_cannot_be_written_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pods").write_text("in the way")
    with pytest.raises(PodlaneError, match=r"write .*hosts: "):
        files(tmp_path).write_hosts(str(tmp_path / "pods" / "u1" / "hosts"), "web-1", ["10.5.3.2"])


def test_only_known_pods_keep_their_folder(tmp_path: Path) -> None:
    pods = files(tmp_path)
    assert pods.left_over(set()) == []
    for uid in ("u1", "u2"):
        pods.write_hosts(pods.paths().hosts(uid), "p", ["10.5.3.2"])
    for uid in pods.left_over({"u2"}):
        pods.remove(uid)
    assert [p.name for p in (tmp_path / "pods").iterdir()] == ["u2"]


def test_what_cannot_be_removed_is_not_tried_at_once_again(tmp_path: Path) -> None:
    (tmp_path / "pods").mkdir()
    (tmp_path / "pods" / "u1").write_text("no folder, so no pod's")
    pods = files(tmp_path)
    assert pods.left_over({"u2"}) == ["u1"]
    assert pods.remove("u1") == RETRY
    assert pods.left_over({"u2"}) == []


def test_the_volumes_of_a_finished_pod_go_before_its_other_files(tmp_path: Path) -> None:
    pods = files(tmp_path)
    pods.write_hosts(pods.paths().hosts("u1"), "p", ["10.5.3.2"])
    assert not pods.has_volumes("u1")
    pods.set_up(EmptyDir("v", pods.paths().volume("u1", "v")))
    assert pods.has_volumes("u1")
    pods.remove_volumes("u1")
    assert not pods.has_volumes("u1")
    assert [entry.name for entry in (tmp_path / "pods" / "u1").iterdir()] == ["hosts"]


def test_mounts(tmp_path: Path) -> None:
    assert files(tmp_path).paths().mounts("u1") == (
        Mount(f"{tmp_path}/pods/u1/hosts", "/etc/hosts"),
        Mount(f"{tmp_path}/resolv.conf", "/etc/resolv.conf", read_only=True),
    )


def test_a_node_without_resolv_conf_mounts_none(tmp_path: Path) -> None:
    assert [m.target for m in files(tmp_path, None).paths().mounts("u1")] == ["/etc/hosts"]


@pytest.mark.parametrize(
    ("resolv", "upstream", "used"),
    [
        ("nameserver 127.0.0.53\noptions edns0\n", "nameserver 192.0.2.1\n", "upstream.conf"),
        ("nameserver 127.0.0.53\n", None, "resolv.conf"),
        ("nameserver 192.0.2.2\n", "nameserver 192.0.2.1\n", "resolv.conf"),
        ("nameserver 127.0.0.53\nnameserver 192.0.2.2\n", "nameserver 192.0.2.1\n", "resolv.conf"),
        ("# none\n", "nameserver 192.0.2.1\n", "resolv.conf"),
    ],
)
def test_a_resolver_on_the_node_s_loopback_is_replaced_by_its_own(
    tmp_path: Path, resolv: str, upstream: str | None, used: str
) -> None:
    assert files(tmp_path, resolv, upstream).paths().resolv_conf == str(tmp_path / used)
