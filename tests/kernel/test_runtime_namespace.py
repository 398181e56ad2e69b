"""Entering network namespaces, seen from the threads that do and those that do not."""

from __future__ import annotations

import os
import socket
import threading

import pytest

from podlane.errors import PodlaneError
from podlane.runtime import namespace
from tests.kernel.conftest import NetnsMaker

pytestmark = pytest.mark.kernel


def own() -> int:
    return os.stat("/proc/thread-self/ns/net").st_ino


def links() -> set[str]:
    return {name for _, name in socket.if_nameindex()}


def test_a_block_is_inside_and_the_thread_comes_back(netns: NetnsMaker) -> None:
    home, there = own(), netns.add("a")
    there.run("ip link add marker type veth peer name other")
    with namespace.inside(there.path):
        assert "marker" in links()
        assert own() != home
    assert own() == home
    assert "marker" not in links()
    with pytest.raises(RuntimeError, match="in the block"), namespace.inside(there.path):
        raise RuntimeError("in the block")
    assert own() == home


def test_other_threads_stay_where_they_are(netns: NetnsMaker) -> None:
    home, seen = own(), []
    entered, leave = threading.Event(), threading.Event()
    there = netns.add("a")

    def visit() -> None:
        with namespace.inside(there.path):
            seen.append(own())
            entered.set()
            leave.wait(10)
        seen.append(own())

    thread = threading.Thread(target=visit)
    thread.start()
    assert entered.wait(10)
    assert own() == home
    leave.set()
    thread.join(10)
    assert seen[0] != home
    assert seen[1] == home


def test_entering_for_good_takes_the_thread_s_children_along(netns: NetnsMaker) -> None:
    there, seen = netns.add("a"), []

    def move() -> None:
        namespace.enter(there.path)
        child = threading.Thread(target=lambda: seen.append(own()))
        child.start()
        child.join(10)
        seen.append(own())

    thread = threading.Thread(target=move)
    thread.start()
    thread.join(10)
    assert seen == [os.stat(there.path).st_ino] * 2


def test_a_process_s_namespace_by_path_and_by_descriptor(netns: NetnsMaker) -> None:
    there = netns.add("a")
    process = there.popen(["sh", "-c", "echo; sleep 300"], stdout=-1)
    assert process.stdout is not None
    process.stdout.readline()
    with namespace.opened(namespace.of_process(process.pid)) as descriptor:
        assert not namespace.is_own(descriptor)
        with namespace.inside(descriptor):
            assert own() == os.stat(there.path).st_ino
            assert namespace.is_own(descriptor)


def test_what_is_not_there_or_no_namespace_is_refused() -> None:
    home = own()
    with pytest.raises(namespace.NamespaceGone, match="enter namespace /run/netns/none: No such file"):
        namespace.enter("/run/netns/none")
    with pytest.raises(PodlaneError, match="enter namespace /dev/null: "):
        namespace.enter("/dev/null")
    assert own() == home
