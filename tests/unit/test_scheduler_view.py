from __future__ import annotations

import pytest
from msgspec.structs import replace
from scheduler_objects import pod

from podlane.store.registry import ObjectList
from scheduler.cluster import caught_up
from scheduler.view import View

pytestmark = pytest.mark.unit


class Source:
    """A mirror that shows what the test says."""

    def __init__(self) -> None:
        self.revision = 1
        self.objects: dict = {}

    def snapshot(self) -> dict:
        return dict(self.objects)

    def show(self, revision: int, *pods) -> None:
        self.revision = revision
        self.objects = {f"default/{p.metadata.name}": p for p in pods}


@pytest.fixture
def source() -> Source:
    return Source()


@pytest.fixture
def view(source) -> View:
    return View(source)


def names(view) -> list[str]:
    return sorted(p.metadata.name for p in view.snapshot().values())


def test_a_creation_shows_until_the_mirror_has_reached_it(source, view):
    view.wrote(pod("a", version=5))
    assert names(view) == ["a"]
    source.show(4)
    assert names(view) == ["a"]
    source.show(6)  # created at 5, deleted by somebody at 6
    assert names(view) == []
    assert len(view) == 0


def test_a_newer_write_of_another_is_not_hidden(source, view):
    view.wrote(pod("a", version=5, phase="Pending"))
    source.show(7, pod("a", version=7, phase="Running"))
    assert view.snapshot()["default/a"].status.phase == "Running"


def test_an_assumed_change_stands_until_the_mirror_moves_on(source, view):
    source.show(5, pod("a", version=5))
    view.assumed(pod("a", version=5, node="n1"))
    assert view.snapshot()["default/a"].spec.node_name == "n1"
    source.show(6, pod("a", version=5), pod("b", version=6))
    assert view.snapshot()["default/a"].spec.node_name == "n1"
    source.show(7, pod("a", version=7, node="n2"), pod("b", version=6))
    assert view.snapshot()["default/a"].spec.node_name == "n2"
    assert len(view) == 0


def test_assumed_on_top_of_a_creation_the_mirror_has_not_seen(source, view):
    view.wrote(pod("a", version=5))
    view.assumed(pod("a", version=5, node="n1"))
    assert view.snapshot()["default/a"].spec.node_name == "n1"
    source.show(5, pod("a", version=5))
    assert view.snapshot()["default/a"].spec.node_name == "n1"
    source.show(6, pod("a", version=6, node="n1"))
    assert len(view.snapshot()) == 1
    assert len(view) == 0


def test_what_we_deleted_is_gone_whatever_the_mirror_still_shows(source, view):
    source.show(5, pod("a", version=5))
    view.deleted(pod("a", version=5))
    assert names(view) == []
    source.show(6, pod("a", version=6))  # a status written just before our deletion
    assert names(view) == []
    source.show(8)
    assert names(view) == []
    assert len(view) == 0


def test_a_new_object_of_the_same_name_is_another(source, view):
    old = pod("a", version=5)
    source.show(5, old)
    view.deleted(old)
    source.show(9, replace(old, metadata=replace(old.metadata, uid="other", resource_version="9")))
    assert names(view) == ["a"]


def test_a_store_that_went_back_has_forgotten_our_writes(source, view):
    source.show(90)
    view.wrote(pod("a", version=95))
    assert names(view) == ["a"]
    source.show(3)
    assert names(view) == []


@pytest.mark.parametrize(
    ("shown_at", "shown", "expected"),
    [
        (5, [pod("a", version=5)], False),  # b is missing
        (5, [pod("a", version=4), pod("b", version=5)], False),  # a is old
        (7, [pod("a", version=5), pod("b", version=6)], True),
        (9, [pod("a", version=9)], True),  # b was deleted after the list
        (6, [pod("a", version=5), pod("b", version=6), pod("c", version=3)], False),  # c was deleted before it
        (8, [pod("a", version=5), pod("b", version=6), pod("c", version=8)], True),  # c came after it
    ],
)
def test_caught_up(source, shown_at, shown, expected):
    source.show(shown_at, *shown)
    assert caught_up(source, ObjectList((pod("a", version=5), pod("b", version=6)), 7)) is expected
