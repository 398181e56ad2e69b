"""Usage from control groups of both versions, on a file system of the test's."""

from __future__ import annotations

from pathlib import Path

import pytest
from agent_objects import Host, container, name, pod

from podlane.errors import PodlaneError
from podlane.runtime.clock import ScriptedClock
from scheduler.agent.stats import Cgroups, Sample, Stats

pytestmark = pytest.mark.unit

V1 = """\
25 20 0:20 / /sys/fs/cgroup ro - tmpfs tmpfs rw
26 25 0:21 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
27 25 0:22 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
28 25 0:23 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
"""
V2 = "26 20 0:21 / /sys/fs/cgroup rw,nosuid - cgroup2 cgroup2 rw,nsdelegate\n"
PART = V1.replace("0:22 / /sys", "0:22 /machine /sys").replace("0:21 / /sys", "0:21 /machine /sys")
STAT = "cpu  100 20 30 5000 400 5 5 40 0 0\ncpu0 1 2 3\n"
MEMINFO = "MemTotal: 1000 kB\nMemFree: 300 kB\nInactive: 250 kB\nInactive(file): 200 kB\n"


class Machine:
    """`files` by path; a group's CPU time can be moved."""

    def __init__(self, root: Path, mountinfo: str) -> None:
        self.root = root
        self.write("proc/self/mountinfo", mountinfo)
        self.write("proc/stat", STAT)
        self.write("proc/meminfo", MEMINFO)
        self.v2 = mountinfo == V2

    def write(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def process(self, pid: int, group: str, *, cpu_ms: int, used: int, cold: int) -> None:
        if self.v2:
            self.write(f"proc/{pid}/cgroup", f"0::{group}\n")
            self.write(f"sys/fs/cgroup{group}/cpu.stat", f"usage_usec {cpu_ms * 1000}\nuser_usec 1\n")
            self.write(f"sys/fs/cgroup{group}/memory.current", f"{used}\n")
            self.write(f"sys/fs/cgroup{group}/memory.stat", f"anon 5\ninactive_file {cold}\nactive_file 9\n")
            return
        self.write(f"proc/{pid}/cgroup", f"4:memory:{group}\n3:cpu,cpuacct:{group}\n1:name=systemd:/x\n0::/y\n")
        mounted = group.removeprefix("/machine")
        self.write(f"sys/fs/cgroup/cpu,cpuacct{mounted}/cpuacct.usage", f"{cpu_ms * 1_000_000}\n")
        self.write(f"sys/fs/cgroup/memory{mounted}/memory.usage_in_bytes", f"{used}\n")
        text = f"inactive_file 1\ntotal_inactive_file {cold}\n"
        self.write(f"sys/fs/cgroup/memory{mounted}/memory.stat", text)


@pytest.mark.parametrize(
    ("mountinfo", "group"), [(V1, "/docker/abc"), (V2, "/system.slice/docker-abc.scope"), (PART, "/machine/docker/abc")]
)
def test_a_container_is_found_and_read(tmp_path: Path, mountinfo: str, group: str) -> None:
    machine = Machine(tmp_path, mountinfo)
    machine.process(7, group, cpu_ms=1500, used=9000, cold=2000)
    cgroups = Cgroups(str(tmp_path))
    paths = cgroups.paths(7)
    assert paths is not None
    assert cgroups.sample(paths) == Sample(cpu=1_500_000_000, memory=7000)
    assert cgroups.paths(8) is None
    machine.process(7, group, cpu_ms=1500, used=1000, cold=2000)  # the two files are not of one moment
    assert cgroups.sample(paths) == Sample(cpu=1_500_000_000, memory=0)
    for file in tmp_path.glob("sys/fs/cgroup/**/memory.*"):
        file.unlink()
    assert cgroups.sample(paths) is None


def test_the_machine(tmp_path: Path) -> None:
    machine = Machine(tmp_path, V1)
    assert Cgroups(str(tmp_path)).node() == Sample(cpu=2_000_000_000, memory=500 * 1024)
    machine.write("proc/meminfo", "MemTotal: 1000 kB\n")
    with pytest.raises(PodlaneError, match="read usage of the machine"):
        Cgroups(str(tmp_path)).node()


def test_usage_is_what_came_between_two_looks(tmp_path: Path) -> None:
    machine = Machine(tmp_path, V2)
    host = Host(pod("p", container("web"), container("side")), pod("q"))
    host.sync()
    pids = {short: host.runtime.process(name(*short))[1] for short in (("web", "p"), ("side", "p"), ("web", "q"))}
    for number, pid in enumerate(pids.values(), 1):
        machine.process(pid, f"/g{number}", cpu_ms=100, used=1000 * number, cold=0)
    clock = ScriptedClock()

    def later() -> None:
        machine.process(pids["web", "p"], "/g1", cpu_ms=350, used=5000, cold=1000)
        host.runtime.end(name("web", "q"))
        (tmp_path / "sys/fs/cgroup/g3/cpu.stat").unlink()

    clock.at(0.5, later)
    stats = Stats(host.runtime, clock, Cgroups(str(tmp_path)))
    told = stats.usage()
    assert told["node"] == {"cpu": 0, "memory": 500 * 1024}
    assert told["pods"] == [
        {
            "namespace": "default",
            "name": "p",
            "uid": "uid-p",
            "containers": [
                {"name": "web", "cpu": 250_000_000, "memory": 4000},
                {"name": "side", "cpu": 0, "memory": 2000},
            ],
        }
    ]
    assert stats.usage() is told  # who asks in the same second has the same answer
    clock.advance(1)
    assert stats.usage() is not told
