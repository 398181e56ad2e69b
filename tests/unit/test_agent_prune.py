"""What may be removed to give disk back, and the loop that does it."""

from __future__ import annotations

from collections.abc import Iterable

import pytest
from agent_objects import Host, container, name, pod
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st

from podlane.api.types import ObjectReference, Pod
from podlane.errors import PodlaneError
from podlane.runtime.clock import ScriptedClock
from podlane.runtime.runner import NotReady
from scheduler.agent import containers as c
from scheduler.agent.cli import agent
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.prune import Age, Disk, Limits, Seen, note, plan
from scheduler.agent.pruner import IMAGES_EVERY, Pruner
from scheduler.agent.runtime import INFRA_IMAGE, Image, Record

pytestmark = pytest.mark.unit

NOW = 10_000.0
FULL = Disk(capacity=1000, available=100)


def image(name: str, size: int = 60, *, in_use: bool = False) -> Image:
    return Image(f"id-{name}", (name,), size, in_use)


def old(*images: Image, last_used: float = 0.0) -> dict[str, Age]:
    return {i.id: Age(0.0, last_used) for i in images}


def seen(*images: Image, ages: dict[str, Age] | None = None, disk: Disk = FULL, wanted: Iterable[str] = ()) -> Seen:
    return Seen(NOW, images=images, ages=old(*images) if ages is None else ages, wanted=frozenset(wanted), disk=disk)


@pytest.mark.parametrize(("available", "goes"), [(1000, False), (160, False), (159, True), (1, True)])
def test_images_go_only_when_the_disk_is_used_above_the_high_mark(available: int, goes: bool) -> None:
    planned = plan(seen(image("a", 1000), disk=Disk(1000, available)), Limits())
    assert bool(planned.images) is goes


def test_images_go_until_the_low_mark_the_longest_unused_first() -> None:
    a, b, c3, d = (image(x) for x in "abcd")
    ages = {a.id: Age(5.0, 9.0), b.id: Age(4.0), c3.id: Age(3.0, 8.0), d.id: Age(2.0)}
    planned = plan(seen(a, b, c3, d, ages=ages), Limits())
    assert str(planned) == "docker rmi d\ndocker rmi b"  # 100 of the 200 that must be free are
    assert (planned.asked, planned.found) == (100, 120)


def test_what_is_in_use_wanted_young_or_holds_networks_stays() -> None:
    used, wanted, young, infra = image("used", in_use=True), image("w"), image("young"), image(INFRA_IMAGE)
    ages = {**old(used, wanted, infra), young.id: Age(NOW - 119)}
    planned = plan(seen(used, wanted, young, infra, ages=ages, wanted=[wanted.id]), Limits())
    assert str(planned) == ""
    assert (planned.asked, planned.found) == (100, 0)
    assert str(plan(seen(young, ages={young.id: Age(NOW - 120)}), Limits())) == "docker rmi young"
    assert str(plan(seen(image("never noted"), ages={}), Limits())) == ""


def test_an_image_without_a_name_goes_by_its_id() -> None:
    nameless = Image("sha256:1", (), 500, in_use=False)
    assert str(plan(seen(nameless, ages=old(nameless)), Limits())) == "docker rmi sha256:1"


def test_ages_begin_with_the_first_look_and_end_with_the_image() -> None:
    a, b = image("a", in_use=True), image("b")
    first = note({}, [a], 50.0)
    assert first == {a.id: Age(0.0, 50.0)}
    assert note(first, [image("a"), b], 60.0) == {a.id: Age(0.0, 50.0), b.id: Age(60.0)}
    assert note(first, [b], 60.0) == {b.id: Age(60.0)}


def record(uid: str, ct: str, attempt: int, state: str = "exited") -> Record:
    labels = {c.POD_UID: uid, c.CONTAINER_NAME: ct, c.RESTART_COUNT: str(attempt)}
    return Record(f"{uid}{ct}{attempt}", f"{ct}-{uid}-{attempt}", state, labels)  # type: ignore[arg-type]


def test_of_ended_attempts_the_latest_and_the_one_before_stay() -> None:
    records = [
        *(record("u", "web", 3, "running"), record("u", "web", 2), record("u", "web", 1), record("u", "web", 0)),
        *(record("v", "web", 1), record("v", "web", 0), record("v", "side", 0)),
        *(record("busy", "web", n) for n in range(4)),
        *(record("odd", "web", n, "running") for n in range(4)),
    ]
    planned = plan(Seen(NOW, records=records, busy={"busy"}), Limits())
    assert str(planned) == "docker rm web-u-1\ndocker rm web-u-0"


@given(
    st.lists(
        st.tuples(st.integers(0, 300), st.booleans(), st.booleans(), st.integers(0, 300), st.integers(0, 300)),
        max_size=12,
    ),
    st.integers(0, 1000),
)
def test_nothing_needed_goes_and_enough_goes_if_there_is_enough(
    given_images: list[tuple[int, bool, bool, int, int]], available: int
) -> None:
    images = [image(str(n), size, in_use=used) for n, (size, used, *_) in enumerate(given_images)]
    wanted = {i.id for i, (_, _, is_wanted, *_) in zip(images, given_images, strict=True) if is_wanted}
    ages = {i.id: Age(NOW - age, used) for i, (*_, age, used) in zip(images, given_images, strict=True)}
    planned = plan(seen(*images, ages=ages, disk=Disk(1000, available), wanted=wanted), Limits())
    free_to_go = [i for i in images if not i.in_use and i.id not in wanted and NOW - ages[i.id].first_seen >= 120]
    assert set(planned.images) <= set(free_to_go)
    if planned.asked:
        assert planned.found >= planned.asked or set(planned.images) == set(free_to_go)
        assert sum(i.size for i in planned.images[:-1]) < planned.asked  # none too many


# --- the loop -----------------------------------------------------------------------------------


class Node:
    """A host with pod p that runs image web:1, and three more images of 100 bytes each."""

    def __init__(self) -> None:
        self.clock = ScriptedClock()
        self.host = Host(pod("p", container("web")))
        self.runtime: FakeRuntime = self.host.runtime
        self.host.sync()
        for spare in ("a:1", "b:1", "wanted:1"):
            self.runtime.add_image(spare)
        self.runtime.image_sizes = {f"sha256:{name}": 100 for name in self.runtime.images}
        self.available = 500
        self.told: list[str] = []
        self.known = True
        self.pruner = Pruner(
            "n1",
            runtime=self.runtime,
            pods=self.pods,
            busy=set,
            events=self,
            clock=self.clock,
            disk=lambda _: Disk(1000, self.available),
        )

    def event(self, about: ObjectReference, kind: str, reason: str, message: str) -> None:
        self.told.append(f"{about.kind} {about.name}: {kind} {reason} {message}")

    def pods(self) -> Iterable[Pod]:
        if not self.known:
            raise PodlaneError("no list yet")
        return [*self.host.pods.values(), pod("q", container("web", image="wanted:1"))]

    def sync(self, after: float = 0.0) -> list[str]:
        self.clock.advance(after)
        self.runtime.calls.clear()
        self.pruner.sync()
        return self.runtime.calls


def test_a_full_disk_loses_images_that_nobody_needs() -> None:
    node = Node()
    assert node.sync() == []
    node.available = 120
    assert node.sync(after=10) == ["docker rmi sha256:a:1"]
    node.available = 220
    assert node.sync(after=10) == []
    assert sorted(node.runtime.images) == ["b:1", INFRA_IMAGE, "wanted:1", "web:1"]
    assert node.told == []


def test_a_disk_that_cannot_be_emptied_is_told_once_until_it_was_better() -> None:
    node = Node()
    node.available = 10
    assert node.sync() == ["docker rmi sha256:a:1", "docker rmi sha256:b:1"]
    assert node.sync(after=10) == []
    told = "Attempted to free 190 bytes, but only found 0 bytes eligible to free."
    assert node.told == [
        f"Node n1: Warning FreeDiskSpaceFailed Failed to garbage collect required amount of images. {told}"
    ]
    node.available = 900
    node.sync(after=10)
    node.available = 10
    node.sync(after=10)
    assert len(node.told) == 2


def test_an_image_fetched_while_the_disk_is_full_has_its_time() -> None:
    node = Node()
    node.sync()
    node.runtime.add_image("new:1")
    node.available = 10
    assert "docker rmi sha256:new:1" not in node.sync(after=10)
    assert node.sync(after=119) == []
    assert node.sync(after=1) == ["docker rmi sha256:new:1"]


def test_nothing_is_removed_before_it_is_known_what_pods_want() -> None:
    node = Node()
    node.available, node.known = 10, False
    with pytest.raises(NotReady):
        node.sync()
    assert node.runtime.calls == []
    node.known = True
    assert node.sync() != []


def test_ended_containers_go_also_while_there_is_room() -> None:
    node = Node()
    spec = node.host.pods["uid-p"].spec.containers[0]
    for number in range(1, 4):
        made = c.container_config(node.host.pods["uid-p"], spec, name("POD", "p"), number, 0)
        node.runtime.start(node.runtime.create(made))
        node.runtime.end(made.name)
    assert node.sync() == [f"docker rm --force {name('web', 'p', 1)}"]  # attempt 0 runs
    assert node.sync(after=10) == []
    assert node.sync(after=IMAGES_EVERY) == []


@pytest.mark.parametrize("value", ["", "85", "80,85", "85,0", "101,80", "85,x", "85,80,1"])
def test_limits_that_make_no_sense_are_refused(value: str) -> None:
    result = CliRunner().invoke(agent, [f"--image-gc={value}"])
    assert result.exit_code == 2
    assert f'expected HIGH,LOW with 0 < LOW < HIGH ≤ 100, got "{value}"' in result.output
