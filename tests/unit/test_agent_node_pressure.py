"""When a node says that it is short of something, and what it lets pods have."""

from __future__ import annotations

from pathlib import Path

import pytest

from scheduler.agent.capacity import (
    allocatable,
    machine_capacity,
    measure,
    parse_capacity,
    parse_reserved,
    with_storage,
)
from scheduler.agent.pressure import TRANSITION, Amount, State, judge, parse_thresholds

pytestmark = pytest.mark.unit

MI, GI = 1024**2, 1024**3
PLENTY = {
    "memory.available": Amount(4 * GI, 8 * GI),
    "nodefs.available": Amount(50 * GI, 100 * GI),
    "nodefs.inodesFree": Amount(900, 1000),
    "imagefs.available": Amount(50 * GI, 100 * GI),
    "imagefs.inodesFree": Amount(0, 0),  # a file system that does not count them
    "pid.available": Amount(30_000, 32_768),
}
THRESHOLDS = parse_thresholds("")


class Node:
    def __init__(self) -> None:
        self.states: dict[str, State] = {}

    def at(self, now: float, **short: Amount) -> list[str]:
        """The conditions that are True, with what they say."""
        usage = PLENTY | {name.replace("_", ".", 1): amount for name, amount in short.items()}
        judgement = judge(usage, THRESHOLDS, self.states, now)
        self.states = dict(judgement.states)
        assert [v.type for v in judgement.verdicts] == ["MemoryPressure", "DiskPressure", "PIDPressure"]
        return [f"{v.type} {v.reason}: {v.message}" for v in judgement.verdicts if v.pressed]


def test_there_is_enough():
    assert Node().at(0) == []
    assert [v.reason for v in judge(PLENTY, THRESHOLDS, {}, 0).verdicts] == [
        "KubeletHasSufficientMemory",
        "KubeletHasNoDiskPressure",
        "KubeletHasSufficientPID",
    ]


@pytest.mark.parametrize(
    ("signal", "enough", "short", "says"),
    [
        ("memory_available", Amount(100 * MI, 8 * GI), Amount(100 * MI - 1, 8 * GI),
         "MemoryPressure KubeletHasInsufficientMemory: memory.available is less than 100Mi"),
        ("nodefs_available", Amount(10 * GI, 100 * GI), Amount(10 * GI - 1, 100 * GI),
         "DiskPressure KubeletHasDiskPressure: nodefs.available is less than 10%"),
        ("imagefs_available", Amount(15 * GI, 100 * GI), Amount(15 * GI - 1, 100 * GI),
         "DiskPressure KubeletHasDiskPressure: imagefs.available is less than 15%"),
        ("nodefs_inodesFree", Amount(50, 1000), Amount(49, 1000),
         "DiskPressure KubeletHasDiskPressure: nodefs.inodesFree is less than 5%"),
        ("pid_available", Amount(20, 1000), Amount(19, 1000),
         "PIDPressure KubeletHasInsufficientPID: pid.available is less than 2%"),
    ],
)  # fmt: skip
def test_each_threshold(signal, enough, short, says):
    assert Node().at(0, **{signal: enough}) == []
    assert Node().at(0, **{signal: short}) == [says]


def test_pressure_begins_at_once_and_ends_late():
    node = Node()
    short = {"memory_available": Amount(MI, 8 * GI)}
    assert len(node.at(0, **short)) == 1
    assert len(node.at(100)) == 1
    assert len(node.at(200, **short)) == 1
    assert len(node.at(200 + TRANSITION - 0.1)) == 1
    assert node.at(200 + TRANSITION) == []


def test_what_was_not_measured_says_nothing():
    assert not any(v.pressed for v in judge({}, THRESHOLDS, {}, 0).verdicts)


def test_thresholds_of_the_operators():
    given = parse_thresholds("memory.available<1Gi, nodefs.available<5Gi")
    assert given["memory.available"].amount == GI
    assert given["nodefs.available"].of(20 * GI) == 5 * GI
    assert given["imagefs.available"].of(100) == 15


@pytest.mark.parametrize(
    "text", ["memory<1Gi", "memory.available", "memory.available=1Gi", "nodefs.available<x", "nodefs.available<100%"]
)
def test_thresholds_that_make_no_sense(text):
    with pytest.raises(ValueError, match="expected"):
        parse_thresholds(text)


# --- what pods may have ----------------------------------------------------------------------


def test_capacity():
    machine = machine_capacity({})
    assert int(machine["cpu"]) > 0
    assert machine["memory"].endswith("Ki")
    assert machine_capacity({"cpu": "7"}) == {**machine, "cpu": "7"}
    assert parse_capacity("cpu=500m, memory=2Gi,") == {"cpu": "500m", "memory": "2Gi"}
    assert parse_capacity("") == {}
    assert parse_reserved("cpu=1") == {"cpu": "1", "memory": "256Mi"}


@pytest.mark.parametrize("text", ["cpu", "disk=1", "cpu=x", "memory=0", "cpu=-1"])
def test_a_capacity_that_makes_no_sense(text):
    with pytest.raises(ValueError, match="expected"):
        parse_capacity(text)


@pytest.mark.parametrize("text", ["pods=3", "cpu=x", "memory=-1"])
def test_a_reserve_that_makes_no_sense(text):
    with pytest.raises(ValueError, match="expected"):
        parse_reserved(text)


def test_pods_get_what_the_system_and_the_thresholds_leave():
    capacity = with_storage({"cpu": "4", "memory": f"{8 * MI}Ki", "pods": "110"}, PLENTY)
    assert capacity["ephemeral-storage"] == f"{100 * MI}Ki"
    left = allocatable(capacity, {}, parse_reserved(""), THRESHOLDS)
    assert left == {
        "cpu": "3900m",
        "memory": f"{8 * MI - 356 * 1024}Ki",
        "pods": "110",
        "ephemeral-storage": f"{90 * MI}Ki",
    }
    # of what the operator says is offered nothing is kept back
    given = {"cpu": "2", "memory": "200Mi"}
    assert allocatable(capacity | given, given, parse_reserved(""), THRESHOLDS) == left | given
    tiny = allocatable({"cpu": "50m", "memory": "64Mi", "pods": "1"}, {}, parse_reserved(""), THRESHOLDS)
    assert tiny == {"cpu": "0", "memory": "0Ki", "pods": "1"}


def test_this_machine_can_be_measured(tmp_path: Path):
    usage = measure(tmp_path, str(tmp_path))
    assert usage.keys() == PLENTY.keys()
    assert all(0 <= amount.available <= amount.capacity for amount in usage.values())
    assert "imagefs.available" not in measure(tmp_path, "")
    assert "nodefs.available" not in measure(tmp_path / "none", "")
