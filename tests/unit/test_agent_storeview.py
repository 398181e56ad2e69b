"""Which services a sync asks for: who starts, who waits for something else, and at which revision."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping

import msgspec
import pytest
from agent_objects import Host, container, name, pod

from podlane.api.types import ConfigMap, ConfigMapEnvSource, EnvFromSource, Pod
from scheduler.agent.references import Followed, Ref, Services
from scheduler.agent.storeview import StoreView

pytestmark = pytest.mark.unit

CM = Ref(ConfigMap, "default", "cm")


class Lists:
    """Answers with what is there, and remembers what was asked for."""

    def __init__(self) -> None:
        self.asked: list[dict[str, int]] = []
        self.there: dict[str, Services] = {"default": Services()}

    def look(self, needed: Mapping[str, int], namespaces: Collection[str]) -> dict[str, Services]:
        self.asked.append(dict(needed))
        return {ns: self.there[ns] for ns in needed if ns in self.there and ns in namespaces}


class Objects:
    def __init__(self) -> None:
        self.there: dict[Ref, Followed | None] = {}

    def look(self, pods: Iterable[Pod]) -> dict[Ref, Followed | None]:
        del pods
        return self.there


class Node(Host):
    """A host whose looks go through a store view."""

    def __init__(self, *pods: Pod) -> None:
        super().__init__(*pods)
        self.lists, self.objects = Lists(), Objects()
        self.view = StoreView(self.objects, self.lists)

    def step(self) -> dict[str, int]:
        """One sync; returns what was asked for."""
        self.known = self.view.look(self.pods, self.records())
        self.view.note(self.sync())
        return self.lists.asked[-1]


def at(obj: Pod, revision: int) -> Pod:
    return msgspec.structs.replace(obj, metadata=msgspec.structs.replace(obj.metadata, resource_version=str(revision)))


def test_services_are_asked_for_while_a_pod_starts_and_when_a_container_ended() -> None:
    node = Node(at(pod("p"), 7))
    assert node.step() == {"default": 7}
    assert node.running() == ["web/p#0"]
    assert node.step() == {}
    node.runtime.end(name("web", "p"), 1)
    assert node.step() == {"default": 7}
    assert node.running() == ["web/p#1"]


def test_a_status_written_meanwhile_does_not_ask_for_newer_ones() -> None:
    mine = pod("p", container(env_from=(EnvFromSource(config_map_ref=ConfigMapEnvSource(name="cm")),)))
    node = Node(at(mine, 7))
    node.lists.there.clear()
    node.objects.there = {CM: ConfigMap()}
    for revision in (7, 8, 9):
        node.pods = {"uid-p": at(mine, revision)}
        assert node.step() == {"default": 7}


def test_nothing_is_asked_for_a_pod_that_waits_for_something_else_until_that_is_there() -> None:
    mine = pod("p", container(env_from=(EnvFromSource(config_map_ref=ConfigMapEnvSource(name="cm")),)))
    node = Node(at(mine, 7))
    node.objects.there = {CM: None}
    for _ in range(2):  # its network is made, then it waits
        node.step()
    assert [node.step() for _ in range(3)] == [{}] * 3
    node.objects.there = {CM: ConfigMap()}
    node.step()  # now the plan lacks nothing but services
    assert node.running() == []
    assert node.step() == {"default": 7}
    assert node.running() == ["web/p#0"]


def test_nothing_is_asked_for_a_container_in_its_back_off() -> None:
    node = Node(at(pod("p"), 7))
    node.step()
    for attempt in (0, 1):
        node.runtime.end(name("web", "p", attempt), 1)
        node.step()
    assert node.running() == []  # back-off 10 s
    assert node.step() == {}
    node.clock.advance(10)
    node.step()
    node.step()
    assert node.running() == ["web/p#2"]


def test_the_newest_of_a_namespaces_pods_decides() -> None:
    node = Node(at(pod("p"), 7), at(pod("q"), 9))
    assert node.step() == {"default": 9}
