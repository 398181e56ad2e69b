from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scheduler_objects import pod

from podlane.errors import Fenced
from podlane.store.registry import ObjectList
from scheduler.cluster import caught_up
from scheduler.view import View

pytestmark = pytest.mark.unit


class Source:
    """A mirror that shows what the test says."""

    def __init__(self) -> None:
        self.revision = 1
        self.objects: dict = {}
        self.changes: set[str] | None = set()

    def snapshot(self) -> dict:
        return dict(self.objects)

    def get(self, key: str):
        return self.objects.get(key)

    def take_changes(self) -> frozenset[str] | None:
        taken, self.changes = self.changes, set()
        return None if taken is None else frozenset(taken)

    def show(self, revision: int, *pods) -> None:
        self.revision = revision
        before, self.objects = self.objects, {f"default/{p.metadata.name}": p for p in pods}
        if self.changes is not None:
            self.changes |= {key for key in before | self.objects if before.get(key) != self.objects.get(key)}


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


class TestFeed:
    """`taken` is what a reader knows who only ever applies what a feed gives."""

    def test_begins_with_everything_and_goes_on_with_what_changed(self, source, view):
        source.show(5, pod("a", version=4), pod("b", version=5))
        feed = view.feed()
        assert sorted(feed.take().objects) == ["default/a", "default/b"]
        assert feed.take().objects == {}
        source.show(7, pod("a", version=4), pod("c", version=6))
        taken = feed.take()
        assert not taken.complete
        assert {key: obj and obj.metadata.name for key, obj in taken.objects.items()} == {
            "default/b": None,
            "default/c": "c",
        }

    def test_our_writes_are_in_it_at_once_and_again_when_they_are_overruled(self, source, view):
        feed = view.feed()
        feed.take()
        view.wrote(pod("a", version=5))
        assert feed.take().objects["default/a"] == pod("a", version=5)
        source.show(6)  # somebody deleted it
        assert feed.take().objects == {"default/a": None}

    def test_a_write_that_the_source_is_past_already_is_not_shown(self, source, view):
        feed = view.feed()
        source.show(6)  # our write of 5 was undone by somebody before we heard that it was done
        feed.take()
        view.wrote(pod("a", version=5))
        assert feed.take().objects == {"default/a": None}

    def test_a_source_that_lost_track_gives_everything(self, source, view):
        feed = view.feed()
        feed.take()
        source.show(6, pod("a", version=6))
        source.changes = None
        assert feed.take().complete

    def test_a_view_that_was_closed_takes_no_changes_from_the_next_one(self, source, view):
        late, feed = view.feed(), View(source).feed()
        late.take()
        feed.take()
        view.close()
        source.show(6, pod("a", version=6))
        with pytest.raises(Fenced):
            late.take()
        assert feed.take().objects == {"default/a": pod("a", version=6)}

    steps = st.lists(
        st.one_of(
            st.tuples(st.just("stored"), st.sampled_from("abc"), st.booleans()),
            st.tuples(st.sampled_from(["ours", "snapshot", "take", "show", "lose"]), st.sampled_from("abc")),
        ),
        max_size=40,
    )

    @given(steps)
    def test_a_reader_of_changes_knows_what_a_snapshot_has(self, steps):
        source = Source()
        view = View(source)
        feeds = [(view.feed(), {}), (view.feed(), {})]
        stored: dict = {}
        revision = 1
        for step, name, *rest in steps:
            key = f"default/{name}"
            if step in {"stored", "ours"}:
                revision += 1
                if step == "stored" and rest[0]:
                    stored.pop(key, None)
                else:
                    stored[key] = pod(name, version=revision)
                if step == "ours":
                    view.wrote(stored[key])
            elif step == "show":
                source.show(revision, *stored.values())
            elif step == "lose":
                source.changes = None
            elif step == "snapshot":
                view.snapshot()
            else:
                _apply(*feeds[0])
        for feed, known in feeds:
            _apply(feed, known)
            assert known == view.snapshot()


def _apply(feed, known: dict) -> None:
    taken = feed.take()
    if taken.complete:
        known.clear()
    known.update(taken.objects)
    for key in [key for key, obj in known.items() if obj is None]:
        del known[key]


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
