"""The index that endpoints are decided on: deciding on what is dirty is deciding on all."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from msgspec.structs import replace
from scheduler_objects import pod, service

from podlane.api.meta import namespaced_name
from scheduler import endpoints
from scheduler.serving import Serving
from scheduler.view import Changes

pytestmark = pytest.mark.unit


def index_of(services, pods=()) -> Serving:
    index = Serving()
    index.see_services(Changes({namespaced_name(s): s for s in services}, complete=True))
    index.see_pods(Changes({namespaced_name(p): p for p in pods}, complete=True))
    index.dirty.clear()
    return index


def test_a_pod_concerns_the_services_that_select_it_and_did():
    index = index_of([service("web"), service("db", selector={"app": "db"}), service("other", selector={"app": "x"})])
    index.see_pods(Changes({"default/a": pod("a", ip="10.4.1.2")}))
    assert index.dirty == {"default/web"}
    index.see_pods(Changes({"default/a": pod("a", ip="10.4.1.2", labels={"app": "db"})}))
    assert index.dirty == {"default/web", "default/db"}


def test_what_no_endpoint_shows_concerns_nobody():
    before = pod("a", ip="10.4.1.2", ready=True)
    index = index_of([service("web")], [before])
    index.see_pods(Changes({"default/a": replace(pod("a", ip="10.4.1.2", ready=True, restarts=3, version=9))}))
    assert index.dirty == set()
    index.see_pods(Changes({"default/a": pod("a", ip="10.4.1.2", ready=False)}))
    assert index.dirty == {"default/web"}


NAMES = ("web", "db")
services = st.builds(
    lambda name, app, headless: (f"default/{name}", service(name, selector=app, cluster_ip=headless)),
    st.sampled_from(NAMES),
    st.sampled_from([{"app": "web"}, {"app": "db"}, {"app": "web", "tier": "x"}, {}]),
    st.sampled_from(["None", "10.96.0.9"]),
)
pods = st.builds(
    lambda i, labels, node, ready, ending, ip, phase: (
        f"default/p{i}",
        pod(f"p{i}", labels=labels, node=node, ready=ready, terminating=ending, ip=ip, phase=phase),
    ),
    st.integers(0, 4),
    st.sampled_from([{"app": "web"}, {"app": "db"}, {"app": "web", "tier": "x"}, {}]),
    st.sampled_from(["n1", "n2"]),
    st.booleans(),
    st.booleans(),
    st.sampled_from(["", "10.4.1.2", "10.4.1.3"]),
    st.sampled_from(["Running", "Failed"]),
)
steps = st.lists(
    st.one_of(
        st.tuples(st.just("service"), services),
        st.tuples(st.just("pod"), pods),
        st.tuples(st.just("no service"), st.sampled_from(NAMES).map(lambda name: (f"default/{name}", None))),
        st.tuples(st.just("no pod"), st.integers(0, 4).map(lambda i: (f"default/p{i}", None))),
        st.tuples(st.sampled_from(["node", "list", "spoil a slice", "drop a slice"]), st.just(("", None))),
    ),
    max_size=30,
)


@settings(deadline=None)
@given(steps)
def test_deciding_on_what_is_dirty_is_deciding_on_all(steps):
    index = Serving()
    stored: dict[str, dict] = {"service": {}, "pod": {}, "slice": {}}
    see = {"service": index.see_services, "pod": index.see_pods, "slice": index.see_slices}
    unreachable: frozenset[str] = frozenset()
    for step, (key, obj) in steps:
        kind = step.removeprefix("no ")
        if step == "node":
            unreachable ^= {"n1"}
            index.all_dirty()
        elif step == "list":
            for name, objects in stored.items():
                see[name](Changes(dict(objects), complete=True))
        elif "slice" in step:
            for name, item in list(stored["slice"].items())[:1]:
                change(stored, see, "slice", name, replace(item, endpoints=()) if "spoil" in step else None)
        else:
            change(stored, see, kind, key, obj)
        carry_out(endpoints.plan(index.services(), index.pods(), index.slices(), unreachable=unreachable), stored, see)
        index.dirty.clear()
        whole = endpoints.plan(
            *(stored[kind].values() for kind in ("service", "pod", "slice")), unreachable=unreachable
        )
        assert str(whole) == ""


def change(stored, see, kind, key, obj) -> None:
    stored[kind].pop(key, None)
    if obj is not None:
        stored[kind][key] = obj
    see[kind](Changes({key: obj}))


def carry_out(plan, stored, see) -> None:
    for item in (*plan.create, *plan.update):
        change(stored, see, "slice", namespaced_name(item), item)
    for item in plan.delete:
        change(stored, see, "slice", namespaced_name(item), None)
