"""How fast netd's kernel adapter programs 5,000 peers, beside iproute2 doing the same."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from ipaddress import IPv4Interface, IPv4Network
from pathlib import Path
from tempfile import TemporaryDirectory

from bench.hosts import SETTLE
from bench.netd_entries import Entries, EntriesError, dump
from bench.netd_leases import NETWORK, entries_of, peers
from bench.rows import Benchmark, Declared, Measured, Progress
from netd.desired import Lease, Peers, Underlay
from netd.kernel import LinuxKernel
from netd.model import Actual
from netd.plan import Plan, plan
from podlane.api.network import NetworkConfig
from podlane.api.subnets import Subnets
from podlane.lab import network
from podlane.runtime.command import run
from podlane.runtime.netlink import NETLINK_ROUTE, NetlinkSocket

PEERS = 5000
ROUNDS = 5


def measure(say: Progress) -> Iterator[Measured]:
    """The same entries into a fresh namespace that has the device: by netd's kernel adapter and by iproute2."""
    device, entries = _plans()
    wanted = entries_of(peers(0, PEERS))
    ours: list[float] = []
    theirs: list[float] = []
    with TemporaryDirectory() as folder:
        batches = _batches(entries, Path(folder))
        for turn in range(ROUNDS):
            with _namespace(device) as netns, network.inside(netns):
                ours.append(_apply(entries, wanted))
            with _namespace(device) as netns:
                theirs.append(_batch(netns, batches, wanted))
            say(f"round {turn + 1} of {ROUNDS}: {ours[-1]:.3f} s, by batch {theirs[-1]:.3f} s")
    yield Measured.median(
        "netd.program_5000", ours, peer="ip -batch and bridge -batch of the same", peer_samples=theirs
    )


def _plans() -> tuple[Plan, Plan]:
    """What netd would do to a kernel without anything: the device's steps, and the entries' that follow."""
    config = NetworkConfig(network=NETWORK)
    local = IPv4Interface("192.168.64.101/24")
    underlay = Underlay("eth0", 1500, v4=local, public_ip=local.ip)
    leases = [Lease(peer.key, Subnets(v4=peer.subnet), peer.value) for peer in peers(0, PEERS)]
    own = Subnets(v4=IPv4Network("10.200.0.0/24"))
    desired = Peers().desired(config, underlay, own, {"flannel.1": "02:00:00:ff:ff:ff"}, leases)
    device = plan(replace(desired, fdb={}, neighbours={}, routes={}, sysctls={}), Actual())
    entries = plan(replace(desired, sysctls={}), Actual(devices=desired.devices))
    return device, entries


@contextmanager
def _namespace(device: Plan) -> Iterator[str]:
    """A namespace with the device; what it held is freed before the next is measured."""
    name = f"plbench-{os.getpid()}"
    run(["ip", "netns", "add", name], timeout=10)
    try:
        underlay = "link add eth0 type veth peer name far\nlink set eth0 up\naddress add 192.168.64.101/24 dev eth0\n"
        lines = "".join(f"{step}\n".removeprefix("ip ") for step in device.steps)
        run(["ip", "-n", name, "-batch", "-"], input=underlay + lines, timeout=10)
        yield name
    finally:
        run(["ip", "netns", "delete", name], timeout=20)
        time.sleep(SETTLE)


def _apply(entries: Plan, wanted: Entries) -> float:
    begin = time.monotonic()
    LinuxKernel().apply(entries)
    seconds = time.monotonic() - begin
    _check(wanted)
    return seconds


def _batches(entries: Plan, folder: Path) -> list[list[str]]:
    """Command lines that do the same, in the same order."""
    lines = [str(step).partition(" ") for step in entries.entry_steps]
    commands: list[list[str]] = []
    for program in ("bridge", "ip"):
        file = folder / program
        file.write_text("".join(f"{rest}\n" for which, _, rest in lines if which == program))
        commands.append([program, "-batch", str(file)])
    return commands


def _batch(netns: str, commands: Sequence[Sequence[str]], wanted: Entries) -> float:
    begin = time.monotonic()
    for argv in commands:
        run(network.within(netns, argv), timeout=60)
    seconds = time.monotonic() - begin
    with network.inside(netns):
        _check(wanted)
    return seconds


def _check(wanted: Entries) -> None:
    with NetlinkSocket(NETLINK_ROUTE) as nl:
        have = dump(nl)
    wrong = sum(have.get(entry) != value for entry, value in wanted.items())
    if wrong:
        raise EntriesError(f"program {len(wanted)} entries: {wrong} are missing or wrong")


BENCHMARKS = (
    Benchmark(
        "netd",
        (Declared("netd.program_5000", "seconds", "the entries of 5,000 peers into a kernel that has the device"),),
        measure,
    ),
)
