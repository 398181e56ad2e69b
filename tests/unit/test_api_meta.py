import re
from datetime import UTC, datetime

import msgspec
import pytest

from podlane.api import meta, types

pytestmark = pytest.mark.unit

EARLY = datetime(2026, 1, 1, tzinfo=UTC)
LATE = datetime(2026, 1, 2, tzinfo=UTC)


def condition(status: str, since: datetime = EARLY, **more: str) -> types.Condition:
    return types.Condition(type="Ready", status=status, last_transition_time=since, **more)


def test_times_have_whole_seconds_in_utc() -> None:
    assert meta.utcnow_from(1_767_225_600.999) == datetime(2026, 1, 1, tzinfo=UTC)
    assert meta.utcnow_from(0.0).tzinfo is UTC


def test_uids_are_random_uuids() -> None:
    assert re.fullmatch(r"[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}", meta.new_uid())
    assert meta.new_uid() != meta.new_uid()


def test_a_condition_keeps_its_time_while_its_status_stays() -> None:
    before = (condition("True", EARLY),)
    after = meta.set_condition(before, condition("True", LATE, reason="Probed"))
    assert after == (condition("True", EARLY, reason="Probed"),)
    assert meta.set_condition(before, condition("False", LATE)) == (condition("False", LATE),)


def test_a_condition_that_says_the_same_gives_the_same_tuple() -> None:
    before = (types.Condition(type="PodScheduled", status="True"), condition("True", EARLY))
    assert meta.set_condition(before, condition("True", LATE)) is before


def test_a_new_condition_comes_last_and_others_stay_in_place() -> None:
    first = types.Condition(type="PodScheduled", status="True")
    assert meta.set_condition((first,), condition("True")) == (first, condition("True"))
    both = (condition("True"), first)
    assert [c.type for c in meta.set_condition(both, condition("False"))] == ["Ready", "PodScheduled"]


@pytest.mark.parametrize(
    ("phase", "deleted", "active", "finished"),
    [
        ("Pending", None, True, False),
        ("Running", None, True, False),
        ("Unknown", None, True, False),
        ("Succeeded", None, False, True),
        ("Failed", None, False, True),
        ("Running", EARLY, False, False),
    ],
)
def test_which_pods_count_as_replicas(phase: str, deleted: datetime | None, active: bool, finished: bool) -> None:
    pod = types.Pod(metadata=types.ObjectMeta(deletion_timestamp=deleted), status=types.PodStatus(phase=phase))
    assert meta.is_pod_active(pod) is active
    assert meta.is_pod_finished(pod) is finished


@pytest.mark.parametrize(("status", "want"), [("True", True), ("False", False), ("Unknown", False)])
def test_a_pod_is_ready_when_its_condition_says_so(status: str, want: bool) -> None:
    assert meta.is_pod_ready(types.Pod(status=types.PodStatus(conditions=(condition(status),)))) is want
    assert not meta.is_pod_ready(types.Pod())


def test_the_controller_is_the_owner_that_says_so() -> None:
    owner = types.ReplicationController(metadata=types.ObjectMeta(name="web", uid="u1"))
    other = types.OwnerReference(api_version="v1", kind="Node", name="n", uid="u2")
    mine = meta.owner_reference(owner)
    pod = types.Pod(metadata=types.ObjectMeta(owner_references=(other, mine)))
    assert meta.controller_of(pod) is mine
    assert (mine.kind, mine.name, mine.uid, mine.controller) == ("ReplicationController", "web", "u1", True)
    assert meta.controller_of(types.Pod()) is None


@pytest.mark.parametrize(
    ("word", "want"),
    [
        ("po", types.Pod),
        ("Pods", types.Pod),
        ("rc", types.ReplicationController),
        ("svc", types.Service),
        ("Service", types.Service),
        ("no", types.Node),
        ("ns", types.Namespace),
        ("ev", types.Event),
        ("endpointslices", types.EndpointSlice),
        ("leases", types.Lease),
    ],
)
def test_kinds_by_kubectls_words(word: str, want: type[types.Object]) -> None:
    resource = meta.find_resource(word)
    assert resource is not None
    assert resource.cls is want


def test_every_kind_has_its_words() -> None:
    assert {resource.cls for resource in meta.RESOURCES} == set(types.KINDS.values())
    assert meta.find_resource("deployment") is None


def test_names_of_objects() -> None:
    pod = types.Pod(metadata=types.ObjectMeta(name="a", namespace="prod", uid="u"))
    node = types.Node(metadata=types.ObjectMeta(name="node1", namespace="ignored"))
    assert meta.key_of(pod) == ("Pod", "prod", "a")
    assert meta.key_of(node) == ("Node", "", "node1")
    assert meta.short_name(pod) == "pod/a"
    assert meta.namespaced_name(pod) == "prod/a"
    assert meta.namespaced_name(node) == "node1"
    assert meta.reference_to(pod) == types.ObjectReference(
        kind="Pod", api_version="v1", namespace="prod", name="a", uid="u"
    )


def test_objects_cannot_be_changed_in_place() -> None:
    pod = types.Pod()
    with pytest.raises(AttributeError):
        pod.kind = "Service"  # type: ignore[misc]
    with pytest.raises(TypeError):
        types.EnvVar("A", "b")  # type: ignore[misc]
    assert msgspec.structs.replace(pod, kind="Pod").kind == "Pod"
