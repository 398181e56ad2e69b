"""The lab itself: two at once, a crash in the middle of `up`, nothing left behind."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from driven_lab import Cluster, assert_nothing_left

from podlane.lab import network
from podlane.lab.topology import Topology
from podlane.runtime.command import run

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PODLANE = str(Path(sys.executable).parent / "podlane")


@pytest.mark.parametrize("step", ["network", "etcd and dockerd"])
def test_a_crash_in_the_middle_of_up_leaves_nothing_behind_after_down(step: str) -> None:
    topology = Topology(f"crash{os.getpid() % 10000}", nodes=2)
    argv = [PODLANE, "lab", "up", "--name", topology.name, "--hosts", "2"]
    with subprocess.Popen(argv, stderr=subprocess.PIPE, text=True) as up:
        assert up.stderr is not None
        for line in up.stderr:
            if line.strip().startswith(step):
                up.kill()
                break
        else:
            pytest.fail(f"up never said that it had done {step!r}")
    assert len(network.namespaces(topology.prefix)) == 4
    run([PODLANE, "lab", "down", "--name", topology.name], timeout=60)
    assert_nothing_left(topology)


def test_a_second_lab_runs_beside_the_first_with_three_etcd_members(cluster: Cluster) -> None:
    second = Topology(f"two{os.getpid() % 10000}", nodes=1, servers=3)
    try:
        run([PODLANE, "lab", "up", "--name", second.name, "--hosts", "1", "--etcd", "3"], timeout=120)
        first_nodes = cluster.podlane("get", "nodes", "-o", "name").split()
        second_nodes = run([PODLANE, "--lab", second.name, "get", "nodes", "-o", "name"], timeout=30).stdout.split()
        assert (len(first_nodes), second_nodes) == (3, ["node/node1"])
        again = run([PODLANE, "lab", "up", "--name", second.name, "--hosts", "1", "--etcd", "3"], timeout=60)
        assert "0 issued" in again.stderr
        assert "0 started" in again.stderr
        other = run([PODLANE, "lab", "up", "--name", second.name, "--hosts", "2"], timeout=60, check=False)
        assert other.returncode == 1
        assert "has 1 hosts, 3 etcd already" in other.stderr
    finally:
        run([PODLANE, "lab", "down", "--name", second.name], timeout=60)
    assert_nothing_left(second)
    assert cluster.podlane("get", "nodes", "-o", "name").split() == first_nodes


def test_a_lab_from_before_there_were_certificates_is_told_from_others_and_taken_down() -> None:
    old = Topology(f"old{os.getpid() % 10000}", nodes=1)
    old.run_dir.mkdir(parents=True)
    (old.run_dir / "lab.json").write_bytes(old.encode())
    network.build(old)
    for argv in (["lab", "up", "--name", old.name, "--hosts", "1"], ["--lab", old.name, "get", "nodes"]):
        done = run([PODLANE, *argv], timeout=30, check=False)
        assert done.returncode == 1
        assert f"podlane lab down --name {old.name}, then up" in done.stderr
    run([PODLANE, "lab", "down", "--name", old.name], timeout=60)
    assert_nothing_left(old)


def test_down_of_a_lab_that_is_not_there_is_no_error() -> None:
    done = run([PODLANE, "lab", "down", "--name", "nosuchlab"], timeout=30)
    assert "not there" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--hosts", "0"], "--hosts: expected 1 to 100, got 0"),
        (["--etcd", "2"], "--etcd: expected 1 or 3 members, got 2"),
        (["--name", "No-Lab"], "--name: expected"),
    ],
)
def test_up_refuses_what_it_cannot_build(arguments: list[str], said: str) -> None:
    done = run([PODLANE, "lab", "up", *arguments], timeout=30, check=False)
    assert (done.returncode, said in done.stderr) == (2, True), done.stderr
