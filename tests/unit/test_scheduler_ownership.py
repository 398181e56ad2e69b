"""The index that replication decides on: kept by changes, it is what a fresh one would be."""

from __future__ import annotations

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace
from scheduler_objects import T0, at, index_of, pod, rc

from scheduler import replication
from scheduler.kinds import owner_of
from scheduler.ownership import Ownership
from scheduler.view import Changes

pytestmark = pytest.mark.unit

OWNERS = ("web", "api", "old")


def owner(name: str, replicas: int = 1, *, app: str = "web", deleting: bool = False):
    base = rc(name, replicas)
    meta = replace(base.metadata, deletion_timestamp=at(1) if deleting else None)
    return owner_of(replace(base, metadata=meta, spec=replace(base.spec, selector={"app": app})))


def shares(index: Ownership) -> str:
    """Every owner's, as text: `web: pods web-a web-b, orphans c`."""
    uids = [f"uid-{name}" for name in OWNERS if index.knows(f"uid-{name}")]
    return "\n".join(_text(index.share(uid)) for uid in uids)


def _text(share) -> str:
    pods, orphans = (sorted(p.metadata.name for p in some) for some in (share.pods, share.orphans))
    return f"{share.owner.reference.name}: pods {' '.join(pods)}, orphans {' '.join(orphans)}"


def test_a_change_concerns_its_owner_only():
    index = index_of([owner("web"), owner("api", app="api")], [pod("web-a", owner="web"), pod("api-a", owner="api")])
    index.dirty.clear()
    index.see_pods(Changes({"default/web-a": pod("web-a", owner="web", node="n1")}))
    assert index.dirty == set()  # nor does that it was bound
    index.see_pods(Changes({"default/web-a": pod("web-a", owner="web", node="n1", ready=True)}))
    assert index.dirty == {"uid-web"}
    assert shares(index) == "web: pods web-a, orphans \napi: pods api-a, orphans "


def test_an_orphan_concerns_those_who_want_it_and_goes_to_the_first():
    index = index_of([owner("web"), owner("api"), owner("old", app="old")], [])
    index.dirty.clear()
    index.see_pods(Changes({"default/a": pod("a")}))
    assert index.dirty == {"uid-web", "uid-api"}
    assert shares(index) == "web: pods , orphans \napi: pods , orphans a\nold: pods , orphans "


def test_when_the_first_goes_the_next_one_is_asked():
    index = index_of([owner("web"), owner("api")], [pod("a")])
    index.dirty.clear()
    index.see_owners("ReplicationController", Changes({"default/api": None}))
    assert index.dirty == {"uid-web"}
    assert shares(index) == "web: pods , orphans a"


def test_a_node_concerns_who_has_pods_on_it():
    index = index_of([owner("web"), owner("api", app="api")], [pod("web-a", owner="web", node="n1")])
    index.dirty.clear()
    index.see_nodes(["n1", "n2"])
    assert index.dirty == {"uid-web"}


def test_owners_of_another_kind_stay_when_one_kind_is_listed_anew():
    index = index_of([owner("web")], [])
    index.see_owners("Job", Changes({"default/web": owner("old")}, complete=True))
    index.see_owners("ReplicationController", Changes({}, complete=True))
    assert shares(index) == "old: pods , orphans "


pods = st.builds(
    lambda i, mine, node, app, phase, ending: (
        f"default/p{i}",
        pod(
            f"p{i}",
            owner=mine,
            node=node,
            labels={"app": app},
            phase=phase,
            terminating=ending,
            ready=phase == "Running",
        ),
    ),
    st.integers(0, 5),
    st.sampled_from(["", *OWNERS, "gone"]),
    st.sampled_from(["", "n1"]),
    st.sampled_from(["web", "api", "debug"]),
    st.sampled_from(["Pending", "Running", "Failed"]),
    st.booleans(),
)
owners = st.builds(
    lambda name, replicas, app, deleting: (f"default/{name}", owner(name, replicas, app=app, deleting=deleting)),
    st.sampled_from(OWNERS),
    st.integers(0, 3),
    st.sampled_from(["web", "api"]),
    st.booleans(),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("pod"), pods),
        st.tuples(st.just("owner"), owners),
        st.tuples(st.just("no pod"), st.integers(0, 5).map(lambda i: (f"default/p{i}", None))),
        st.tuples(st.just("no owner"), st.sampled_from(OWNERS).map(lambda name: (f"default/{name}", None))),
        st.tuples(st.sampled_from(["node", "list pods", "list owners"]), st.just(("", None))),
    ),
    max_size=30,
)


def decided(index: Ownership, uids, unreachable) -> dict[str, str]:
    """What each owner's plan is: how many pods go and come, and all that is counted. Which ones go is decided anew."""
    plans = {}
    for uid in uids:
        plan = replication.plan(
            [index.share(uid)], now=T0, rng=random.Random(1), taken=index.names, unreachable=unreachable
        )
        plans[uid] = f"{plan.sizes()} {plan.counts} {plan.next_at}"
    return plans


@given(steps)
def test_what_is_not_dirty_need_not_be_decided_again(steps):
    """After any changes, deciding on the dirty owners gives what a pass over everything gives."""
    index = Ownership()
    known_pods: dict = {}
    known_owners: dict = {}
    plans: dict[str, str] = {}
    unreachable: frozenset[str] = frozenset()
    for step, (key, obj) in steps:
        known = known_owners if "owner" in step else known_pods
        if step == "node":
            unreachable ^= {"n1"}
            index.see_nodes(["n1"])
        elif step.startswith("list"):
            pass
        elif obj is None:
            known.pop(key, None)
        else:
            known[key] = obj
        changes = Changes(dict(known), complete=True) if step.startswith("list") else Changes({key: obj})
        if "owner" in step:
            index.see_owners("ReplicationController", changes)
        elif step != "node":
            index.see_pods(changes)
        plans |= decided(index, index.dirty, unreachable)
        index.dirty.clear()
        whole = index_of(known_owners.values(), known_pods.values())
        assert shares(index) == shares(whole)
        assert {uid: plan for uid, plan in plans.items() if index.knows(uid)} == decided(
            whole, whole.dirty, unreachable
        )
