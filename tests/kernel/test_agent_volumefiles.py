"""Volumes on a real file system: exchanged all at once, kept inside, removed without what is not theirs."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from scheduler.agent import mounts, volumefiles
from scheduler.agent.volumefiles import MountFailed, bind, remove, set_up
from scheduler.agent.volumes import EmptyDir, File, Files, HostPath, SubPath

pytestmark = pytest.mark.kernel


@pytest.fixture
def pod(tmp_path: Path) -> Iterator[Path]:
    """A pod's folder, of which nothing is left behind."""
    folder = tmp_path / "pod"
    folder.mkdir()
    yield folder
    for point in mounts.mount_points(str(tmp_path)):
        mounts.unmount(point)


def files(path: Path, *, memory: bool = False, group: int | None = None, mode: int = 0o644, **content: str) -> Files:
    made = tuple(File(name.replace("__", "/"), text.encode(), mode) for name, text in content.items())
    return Files("cfg", str(path), made, memory=memory, group=group)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


# --- files that change all at once ------------------------------------------------------------------


def test_files_are_links_through_one_link_that_is_exchanged(pod: Path) -> None:
    volume = pod / "volumes" / "cfg"
    set_up(files(volume, a="1", sub__b="2"))
    assert sorted(os.readlink(volume / name) for name in ("a", "sub")) == ["..data/a", "..data/sub"]
    assert ((volume / "a").read_text(), (volume / "sub" / "b").read_text()) == ("1", "2")
    first = os.readlink(volume / "..data")
    set_up(files(volume, a="1", sub__b="2"))
    assert os.readlink(volume / "..data") == first  # done twice it changes nothing
    set_up(files(volume, a="3", c="4"))
    assert sorted(entry.name for entry in volume.iterdir()) == sorted(
        ["..data", os.readlink(volume / "..data"), "a", "c"]
    )
    assert (volume / "a").read_text() == "3"


def test_a_reader_never_meets_a_mixture(pod: Path) -> None:
    volume = pod / "cfg"
    set_up(files(volume, a="0", b="0"))
    over, mixed, looks = threading.Event(), [], [0]

    def read() -> None:
        while not over.is_set():
            try:
                folder = os.open(volume / "..data", os.O_RDONLY)
            except FileNotFoundError:
                continue  # between the look at the link and at what it leads to, both were exchanged
            try:
                pair = tuple(Path(f"/proc/self/fd/{folder}/{name}").read_text() for name in ("a", "b"))
            except FileNotFoundError:
                continue
            finally:
                os.close(folder)
            looks[0] += 1
            if pair[0] != pair[1]:
                mixed.append(pair)

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(1, 300):
        set_up(files(volume, a=str(number), b=str(number)))
        assert (volume / "a").read_text() == (volume / "b").read_text() == str(number)
    over.set()
    reader.join(10)
    assert not mixed
    assert looks[0]


def test_what_was_interrupted_is_gone_on_with(pod: Path) -> None:
    volume = pod / "cfg"
    wanted = files(volume, a="1", b="2")
    half = volume / f"..{volumefiles._digest(wanted)}"
    half.mkdir(parents=True)
    (half / "a").write_text("half")
    (volume / "..data_tmp").symlink_to("nowhere")
    (volume / "..old").mkdir()
    set_up(wanted)
    assert ((volume / "a").read_text(), (volume / "b").read_text()) == ("1", "2")
    assert sorted(entry.name for entry in volume.iterdir()) == sorted(["..data", half.name, "a", "b"])


def test_modes_and_the_pods_group(pod: Path) -> None:
    set_up(files(pod / "a", mode=0o400, k="1"))
    assert mode_of(pod / "a" / "k") == 0o400
    set_up(files(pod / "b", mode=0o600, group=2000, k="1"))
    assert (mode_of(pod / "b" / "k"), (pod / "b" / "k").stat().st_gid) == (0o640, 2000)


def test_secrets_are_in_memory_and_go_with_the_pod(pod: Path) -> None:
    set_up(files(pod / "s", memory=True, key="hunter2"))
    set_up(files(pod / "s", memory=True, key="hunter3"))
    assert (pod / "s" / "key").read_text() == "hunter3"
    assert mounts.mount_points(str(pod)) == [str(pod / "s")]
    assert "tmpfs" in next(x for x in Path("/proc/self/mountinfo").read_text().splitlines() if str(pod / "s") in x)
    remove(pod)
    assert (pod.exists(), mounts.mount_points(str(pod))) == (False, [])


# --- folders and what is on the node -----------------------------------------------------------------


def test_an_empty_dir_in_memory_has_its_size(pod: Path) -> None:
    volume = EmptyDir("e", str(pod / "e"), memory=True, size=64 * 1024)
    set_up(volume)
    (pod / "e" / "kept").write_bytes(b"x" * 32 * 1024)
    with pytest.raises(OSError, match="No space left"):
        (pod / "e" / "more").write_bytes(b"x" * 128 * 1024)
    set_up(volume)  # another container of the pod starts
    assert (pod / "e" / "kept").exists()
    assert mode_of(pod / "e") == 0o777


def test_an_empty_dir_on_disk_may_belong_to_a_group(pod: Path) -> None:
    set_up(EmptyDir("e", str(pod / "e"), group=2000))
    assert (mode_of(pod / "e"), (pod / "e").stat().st_gid) == (0o2777, 2000)
    set_up(EmptyDir("f", str(pod / "f")))
    assert mode_of(pod / "f") == 0o777


def host_paths(folder: Path) -> dict[str, Path]:
    (folder / "dir").mkdir()
    (folder / "file").write_text("")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(folder / "socket"))
    os.mknod(folder / "block", stat.S_IFBLK | 0o600, os.makedev(7, 200))
    return {
        "Directory": folder / "dir",
        "File": folder / "file",
        "Socket": folder / "socket",
        "CharDevice": Path("/dev/null"),
        "BlockDevice": folder / "block",
    }


WORDS = {
    "Directory": "a directory",
    "File": "a file",
    "Socket": "a socket file",
    "CharDevice": "a character device",
    "BlockDevice": "a block device",
}


def test_what_a_host_path_must_be(tmp_path: Path) -> None:
    there = host_paths(tmp_path)
    for kind, words in WORDS.items():
        for other, path in there.items():
            if other == kind:
                set_up(HostPath("h", str(path), kind))
                continue
            with pytest.raises(MountFailed) as raised:
                set_up(HostPath("h", str(path), kind))
            assert str(raised.value) == (
                f'MountVolume.SetUp failed for volume "h" : hostPath type check failed: {path} is not {words}'
            )
    for path in there.values():
        set_up(HostPath("h", str(path)))
    with pytest.raises(MountFailed, match="is not a directory"):
        set_up(HostPath("h", str(tmp_path / "none"), "Directory"))


def test_what_a_host_path_makes(tmp_path: Path) -> None:
    for _ in range(2):
        set_up(HostPath("h", str(tmp_path / "a" / "b"), "DirectoryOrCreate"))
        set_up(HostPath("h", str(tmp_path / "a" / "file"), "FileOrCreate"))
        set_up(HostPath("h", str(tmp_path / "any")))
    assert (mode_of(tmp_path / "a" / "b"), mode_of(tmp_path / "a" / "file")) == (0o755, 0o644)
    assert (tmp_path / "any").is_dir()
    with pytest.raises(MountFailed, match="No such file or directory"):
        set_up(HostPath("h", str(tmp_path / "no" / "folder"), "FileOrCreate"))


# --- parts of volumes ------------------------------------------------------------------------------------


def part(pod: Path, path: str, volume: str = "v") -> SubPath:
    return SubPath(volume, str(pod / volume), path, str(pod / "subpaths" / "web" / "0"))


def test_a_part_is_bound_and_made_where_it_is_missing(pod: Path) -> None:
    (pod / "v").mkdir(mode=0o755)
    bind(part(pod, "a/b"))
    (pod / "subpaths" / "web" / "0" / "x").write_text("1")
    assert (pod / "v" / "a" / "b" / "x").read_text() == "1"
    (pod / "v" / "file").write_text("2")
    bind(part(pod, "file"))  # the next attempt of the container, whose volume has changed
    assert (pod / "subpaths" / "web" / "0").read_text() == "2"
    assert mounts.mount_points(str(pod)) == [str(pod / "subpaths" / "web" / "0")]


def test_a_part_keeps_what_it_was_bound_to_when_the_volume_changes(pod: Path) -> None:
    set_up(files(pod / "v", k="1"))
    bind(part(pod, "k"))
    set_up(files(pod / "v", k="2"))
    assert ((pod / "subpaths" / "web" / "0").read_text(), (pod / "v" / "k").read_text()) == ("1", "2")
    bind(part(pod, "k"))
    assert (pod / "subpaths" / "web" / "0").read_text() == "2"


@pytest.mark.parametrize(
    "path", ["../secret", "out", "out/deep", "up/secret", "in/../../secret", "/../secret", "gone/../../secret"]
)
def test_no_part_leads_out_of_its_volume(pod: Path, path: str) -> None:
    (pod / "v" / "in").mkdir(parents=True)
    (pod / "secret").mkdir()
    (pod / "v" / "out").symlink_to(pod / "secret")
    (pod / "v" / "up").symlink_to("..")
    with pytest.raises(MountFailed, match="failed to prepare subPath"):
        bind(part(pod, path))
    assert mounts.mount_points(str(pod)) == []
    assert list((pod / "secret").iterdir()) == []


def test_links_within_a_volume_may_be_followed(pod: Path) -> None:
    (pod / "v" / "real").mkdir(parents=True)
    (pod / "v" / "link").symlink_to("real")
    bind(part(pod, "link/new"))
    assert (pod / "v" / "real" / "new").is_dir()


# --- the end -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("through_a_link", [False, True])
def test_the_end_of_a_pod_leaves_the_nodes_folders_alone(pod: Path, tmp_path: Path, through_a_link: bool) -> None:
    if through_a_link:  # as /var/run is one
        (tmp_path / "link").symlink_to(tmp_path)
        pod = tmp_path / "link" / "pod"
    node = tmp_path / "srv"
    (node / "data").mkdir(parents=True)
    (node / "data" / "precious").write_text("kept")
    bind(SubPath("h", str(node), "data", str(pod / "subpaths" / "web" / "0")))
    (pod / "volumes").mkdir()
    (pod / "volumes" / "link").symlink_to(node)
    remove(pod)
    remove(pod)
    assert not pod.exists()
    assert (node / "data" / "precious").read_text() == "kept"
