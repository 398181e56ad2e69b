"""Whatever changes, in whatever order, interrupted wherever: the end is as if built afresh, and nobody missed."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxyd_node import World
from proxyd_objects import PLACE, POD_NETWORK, POD_NETWORK6, SERVICE_RANGE, SERVICE_RANGE6, settled
from proxyd_random import CHANGES, PLACES, copied, meaning, nobody_misses, split

from podlane.errors import PodlaneError
from podlane.runtime import metrics
from proxyd.chains import EXTERNAL_SOURCE
from proxyd.desired import Index
from proxyd.plan import plan_all, plan_changes
from proxyd.plane import RETIRE_AFTER
from proxyd.slots import plan_retire
from proxyd.tables import CLUSTER_IPS, ENDPOINTS, FAMILIES, HAIRPIN, SERVICES, Family, Refused, Tables
from proxyd.walk import consistent

pytestmark = pytest.mark.unit


def fresh(services: dict[str, Any], slices: dict[str, Any], place: Any = PLACE) -> Index:
    index = Index(place)
    index.replace(services, slices)
    return index


def put(into: dict[str, Any], changed: dict[str, Any]) -> None:
    for name, each in changed.items():
        if each is None:
            into.pop(name, None)
        else:
            into[name] = each


def everything(index: Index) -> dict[str, Any]:
    return {
        "wanted": {each: index.wanted(each) for each in index.frontends},
        "owners": {each: index.owner(each) for each in index.frontends},
        "addresses": dict(index.addresses),
        "hairpin": dict(index.hairpin),
        "clashes": index.clashes,
        "health": index.health,
        "without local": index.without_local(),
        "proxied": index.proxied,
        "services": dict(index.services),
    }


@settings(max_examples=50)
@given(CHANGES, st.data())
def test_any_sequence_of_updates_equals_building_afresh(sequence, data):
    index, services, slices, place = Index(PLACE), {}, {}, PLACE
    for changes in sequence:
        before = {each: index.wanted(each) for each in index.frontends}
        members = [dict(index.addresses), dict(index.hairpin)]
        changed = split(changes)
        touched = index.update(*changed)
        put(services, changed[0])
        put(slices, changed[1])
        if data.draw(st.booleans(), label="move"):
            place = data.draw(PLACES)
            touched |= index.move(place)
        after = {each: index.wanted(each) for each in index.frontends}
        assert {each for each in before.keys() | after.keys() if before.get(each) != after.get(each)} <= (
            touched.frontends
        )
        for was, now, told in zip(
            members, (index.addresses, index.hairpin), (touched.addresses, touched.hairpin), strict=True
        ):
            assert was.keys() ^ now.keys() <= told
        assert everything(index) == everything(fresh(services, slices, place))
    assert not index.replace(services, slices).frontends


class Kernels:
    """Both families' tables, brought along by plans. `retired`: what is left for later."""

    def __init__(self) -> None:
        self.tables = {family: Tables(family, {EXTERNAL_SOURCE}) for family in FAMILIES}
        self.retired: dict[Family, list[Any]] = {family: [] for family in FAMILIES}

    def commit(self, family: Family, transaction: Any) -> None:
        """One transaction: nobody misses, and what is there goes together."""
        before = copied(self.tables[family])
        self.tables[family].apply(transaction)
        nobody_misses(before, self.tables[family])
        assert consistent(self.tables[family]) == []

    def retire(self, family: Family) -> None:
        self.commit(family, plan_retire(self.tables[family], self.retired[family]))
        self.retired[family] = []


@settings(max_examples=50)
@given(CHANGES, st.data())
def test_no_commit_makes_anyone_miss_and_every_interruption_converges(sequence, data):
    kernels, index = Kernels(), Index(PLACE)
    for changes in sequence:
        touched = index.update(*split(changes))
        if data.draw(st.booleans(), label="move"):
            touched |= index.move(data.draw(PLACES))
        for family in FAMILIES:
            tables = kernels.tables[family]
            whole = data.draw(st.booleans(), label="whole")
            plan = plan_all(tables, index) if whole else plan_changes(tables, index, touched)
            kernels.commit(family, plan.now)
            assert not plan_all(tables, index).now
            kernels.retired[family] += plan.retire
            if data.draw(st.booleans(), label="killed before the later transaction"):
                kernels.retired[family] = plan_all(tables, index).retire  # what a new process finds
            if data.draw(st.booleans(), label="later transaction"):
                kernels.retire(family)
    for family in FAMILIES:
        kernels.retire(family)
        # what nobody remembered is found by the next comparison
        kernels.commit(family, plan_retire(kernels.tables[family], plan_all(kernels.tables[family], index).retire))
        assert not plan_all(kernels.tables[family], index)
        assert meaning(kernels.tables[family]) == meaning(settled(index, family))


@settings(max_examples=40)
@given(CHANGES)
def test_what_is_retired_is_all_that_is_left_over(sequence):
    """Without a restart, nothing stays behind that only a comparison would find."""
    kernels, index = Kernels(), Index(PLACE)
    for changes in sequence:
        touched = index.update(*split(changes))
        for family in FAMILIES:
            plan = plan_changes(kernels.tables[family], index, touched)
            kernels.commit(family, plan.now)
            kernels.retired[family] += plan.retire
    for family in FAMILIES:
        kernels.retire(family)
        assert meaning(kernels.tables[family]) == meaning(settled(index, family))


@settings(max_examples=30)
@given(CHANGES, CHANGES)
def test_tables_of_the_first_version_converge_and_nobody_misses(old, new):
    """It had `services`, `endpoints`, `cluster_ips` and `hairpin`, and chains lbN of the same rules."""
    index = Index(PLACE)
    for changes in old:
        index.update(*split(changes))
    for family in FAMILIES:
        was = settled(index, family)
        chains = {f"lb{n}" for n in range(1, 60)} & was.chains
        tables = Tables(family, chains)
        for name in (CLUSTER_IPS, HAIRPIN):
            tables[name].update(was[name])
        for key, verdict in was[SERVICES].items():
            if key[:-8] in was[CLUSTER_IPS] and str(verdict).removeprefix("goto ") in chains:
                tables[SERVICES][key] = verdict
                tables[ENDPOINTS].update({slot: each for slot, each in was[ENDPOINTS].items() if slot[:-4] == key})
        assert consistent(tables) == []
        kernels = Kernels()
        kernels.tables[family] = tables
        for changes in new:
            index.update(*split(changes))
        plan = plan_all(tables, index)
        kernels.commit(family, plan.now)
        kernels.commit(family, plan_retire(tables, plan.retire))
        assert meaning(tables) == meaning(settled(index, family))


# --- the whole sync ----------------------------------------------------------------------


class Killed(BaseException):
    """The process ends here."""


def dual_world() -> World:
    world = World()
    world.source.pod_networks = (POD_NETWORK, POD_NETWORK6)
    world.source.service_ranges = (SERVICE_RANGE, SERVICE_RANGE6)
    return world


def store(world: World, changes: Any) -> None:
    for name, each in dict(changes).items():
        into: dict[str, Any] = world.source.slices if name.startswith("default/s") else world.source.services
        put(into, {name: each})
        world.source._changed[into is world.source.slices].add(name)


class Watch:
    """Sees each commit: nobody misses, tables go together; and kills the process after some of them.

    `fates`: what becomes of the process after the next commits. (They may be made in another thread.)
    """

    def __init__(self, world: World) -> None:
        self._world = world
        self.fates: list[str] = []
        self._before = {family: Tables(family) for family in FAMILIES}
        world.nft.after_commit = self

    def __call__(self, transaction: Any) -> None:
        family = transaction.family
        now = self._world.nft.kernel[family]
        nobody_misses(self._before[family], now)
        assert consistent(now) == []
        self._before[family] = copied(now)
        fate = self.fates.pop(0) if self.fates else "on"
        if fate == "killed":
            raise Killed
        if fate == "answer lost":
            raise PodlaneError("wait for netlink answer: deadline passed")


FATES = st.lists(st.sampled_from(["on", "on", "on", "killed", "answer lost"]), max_size=6)
FAULTS = st.sampled_from(
    [None, None, None, Refused("commit", 12), Refused("commit", 17), PodlaneError("send: deadline passed")]
)


@settings(max_examples=50)
@given(CHANGES, st.data())
def test_a_proxy_that_is_killed_and_refused_at_any_point_converges(sequence, data):
    world = dual_world()
    watch = Watch(world)
    for changes in sequence:
        store(world, changes)
        if fault := data.draw(FAULTS, label="fault"):
            world.nft.fail_next(fault)
        watch.fates = data.draw(FATES, label="after each commit")
        if data.draw(st.booleans(), label="time passes"):
            world.clock.advance(RETIRE_AFTER)
        try:
            world.proxy.sync()
        except Killed:
            world.start()
        except PodlaneError:
            if data.draw(st.booleans(), label="restart after the error"):
                world.start()
    world.nft.after_commit = lambda _: None
    world.nft._failures.clear()
    try_again(world)
    index = fresh(world.source.services, world.source.slices)
    for family in FAMILIES:
        assert meaning(world.nft.kernel[family]) == meaning(settled(index, family))
        assert consistent(world.nft.kernel[family]) == []
    assert not world.told
    world.nft.commits.clear()
    world.start()
    world.proxy.sync()
    assert [line for line in world.committed() if "chain" not in line] == []


def try_again(world: World) -> None:
    """As the runner would: until a sync succeeds, and what it asked for is done."""
    for _ in range(3):
        try:
            world.proxy.sync()
            break
        except PodlaneError:
            continue
    world.settle()
    world.settle()


@settings(max_examples=50)
@given(CHANGES, CHANGES, st.data())
def test_whatever_the_kernel_refuses_all_else_is_as_if_that_had_not_been_asked_for(first, then, data):
    world = dual_world()
    for changes in first:
        store(world, changes)
    index = fresh(world.source.services, world.source.slices)
    elements = sorted(
        (name, key) for family in FAMILIES for name, found in settled(index, family).maps.items() for key in found
    )
    if elements:
        refused = data.draw(st.lists(st.sampled_from(elements), max_size=3), label="refused")
        for each in refused:
            world.nft.refuse(*each)
    world.nft.named = data.draw(st.booleans(), label="named")
    for changes in [[], *then]:
        store(world, changes)
        world.proxy.sync()
        world.settle()
        index = fresh(world.source.services, world.source.slices)
        out = world.proxy._index.left_out
        index.left_out.update(out)
        for family in FAMILIES:
            assert meaning(world.nft.kernel[family]) == meaning(settled(index, family))
        assert metrics.value("podlane_proxyd_left_out") == len(out)
        assert set(out) <= set(index.frontends) | set(index.addresses) | set(index.hairpin)
        assert bool(world.told) >= bool(out)
