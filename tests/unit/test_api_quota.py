"""Quotas read as a script: a quota, pods in turn, and what each leaves used, or is told."""

from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.api import types
from podlane.api.podresources import limits_of, qos_class, requests_of
from podlane.api.quota import charged, counted, is_counted

pytestmark = pytest.mark.unit

NOON = datetime(2026, 1, 2, 12, 0, 0, tzinfo=UTC)


def resources(text: str) -> dict[str, Any]:
    """`cpu=1/2 memory=64Mi/` as requests/limits."""
    said: dict[str, Any] = {"requests": {}, "limits": {}}
    for part in text.split():
        name, _, amounts = part.partition("=")
        request, _, limit = amounts.partition("/")
        if request:
            said["requests"][name] = request
        if limit:
            said["limits"][name] = limit
    return said


def pod(*containers: str, init: tuple[str, ...] = (), phase: str = "Pending", **spec: Any) -> types.Pod:
    """Each container by its resources; an init container's begins with `sidecar ` if it is one."""
    return msgspec.convert(
        {
            "metadata": {"name": "web", "namespace": "prod"},
            "spec": {
                "initContainers": [
                    {
                        "name": f"i{n}",
                        "restartPolicy": "Always" if text.startswith("sidecar") else "",
                        "resources": resources(text.removeprefix("sidecar")),
                    }
                    for n, text in enumerate(init)
                ],
                "containers": [{"name": f"c{n}", "resources": resources(text)} for n, text in enumerate(containers)],
                **spec,
            },
            "status": {"phase": phase},
        },
        types.Pod,
    )


def quota(*scopes: str, **hard: str) -> types.ResourceQuota:
    """Names with `_` for `.`; nothing used yet."""
    spec = types.ResourceQuotaSpec(
        hard={name.replace("_", "."): text for name, text in hard.items()},
        scopes=scopes,  # type: ignore[arg-type]
    )
    new = types.ResourceQuota(metadata=types.ObjectMeta(name="few", namespace="prod"), spec=spec)
    return msgspec.structs.replace(new, status=counted(new, (), NOON))


@pytest.mark.parametrize(
    ("made", "requests", "limits", "qos"),
    [
        (pod(""), {}, {}, "BestEffort"),
        (pod("cpu=100m", "cpu=200m memory=1Gi"), {"cpu": "0.3", "memory": 2**30}, {}, "Burstable"),
        (pod("cpu=/1 memory=/1Gi"), {"cpu": 1, "memory": 2**30}, {"cpu": 1, "memory": 2**30}, "Guaranteed"),
        (pod("cpu=1/1 memory=/1Gi", ""), {"cpu": 1, "memory": 2**30}, {"cpu": 1, "memory": 2**30}, "Burstable"),
        (pod("cpu=500m/1 memory=/1Gi"), {"cpu": "0.5", "memory": 2**30}, {"cpu": 1, "memory": 2**30}, "Burstable"),
        (pod("cpu=0"), {"cpu": 0}, {}, "BestEffort"),
        (pod("cpu=1", init=("cpu=3",)), {"cpu": 3}, {}, "Burstable"),
        (pod("cpu=1", init=("cpu=3", "sidecar cpu=1", "cpu=3")), {"cpu": 4}, {}, "Burstable"),
        (pod("cpu=5", init=("cpu=3", "sidecar cpu=1", "cpu=3")), {"cpu": 6}, {}, "Burstable"),
    ],
)
def test_what_a_pod_asks_for(made: types.Pod, requests: Any, limits: Any, qos: str) -> None:
    assert requests_of(made.spec) == {name: Decimal(value) for name, value in requests.items()}
    assert limits_of(made.spec) == {name: Decimal(value) for name, value in limits.items()}
    assert qos_class(made.spec) == qos


def test_pods_are_counted_until_there_are_enough() -> None:
    now: Any = quota(pods="2", requests_memory="3Gi")
    now = charged(now, pod("memory=1Gi"))
    assert now.status.used == {"pods": "1", "requests.memory": "1Gi"}
    assert charged(now, pod("memory=2560Mi")) == (
        "exceeded quota: few, requested: requests.memory=2560Mi, used: requests.memory=1Gi, "
        "limited: requests.memory=3Gi"
    )
    now = charged(now, pod("memory=1536Mi", "memory=/512Mi"))
    assert now.status.used == {"pods": "2", "requests.memory": "3Gi"}
    assert charged(now, pod("memory=1Mi")) == (
        "exceeded quota: few, requested: pods=1,requests.memory=1Mi, used: pods=2,requests.memory=3Gi, "
        "limited: pods=2,requests.memory=3Gi"
    )


def test_what_is_limited_has_to_be_said() -> None:
    limited = quota(cpu="4", limits_memory="1Gi")
    assert charged(limited, pod("cpu=1", "memory=/1Mi")) == (
        "failed quota: few: must specify cpu for: c1; limits.memory for: c0"
    )
    after = charged(limited, pod("cpu=/1500m memory=/512Mi"))
    assert isinstance(after, types.ResourceQuota)
    assert after.status.used == {"cpu": "1500m", "limits.memory": "512Mi"}


@pytest.mark.parametrize(
    ("scope", "made", "counts"),
    [
        ("BestEffort", pod(""), True),
        ("BestEffort", pod("cpu=1"), False),
        ("NotBestEffort", pod("cpu=1"), True),
        ("NotBestEffort", pod(""), False),
        ("Terminating", pod("", activeDeadlineSeconds=5), True),
        ("Terminating", pod(""), False),
        ("NotTerminating", pod(""), True),
        ("NotTerminating", pod("", activeDeadlineSeconds=5), False),
    ],
)
def test_scopes(scope: str, made: types.Pod, counts: bool) -> None:
    full = quota(scope, pods="0")
    answer = charged(full, made)
    assert isinstance(answer, str) if counts else answer is full


def ended(made: types.Pod, *, ago: float) -> types.Pod:
    metadata = msgspec.structs.replace(
        made.metadata, deletion_timestamp=NOON - timedelta(seconds=ago), deletion_grace_period_seconds=30
    )
    return msgspec.structs.replace(made, metadata=metadata)


def test_what_is_over_counts_as_an_object_only() -> None:
    limited = quota(**{"count/pods": "9", "pods": "9", "cpu": "9"})
    pods = [
        pod("cpu=1"),
        pod("cpu=1", phase="Succeeded"),
        pod("cpu=1", phase="Failed"),
        ended(pod("cpu=1"), ago=30),
        ended(pod("cpu=1"), ago=31),
    ]
    assert counted(limited, pods, NOON).used == {"count/pods": "5", "pods": "2", "cpu": "2"}


def test_a_quota_that_limits_more_than_was_counted_is_to_be_counted_anew() -> None:
    known = quota(pods="1")
    more = msgspec.structs.replace(known, spec=types.ResourceQuotaSpec(hard={"pods": "2", "cpu": "1"}))
    assert is_counted(known)
    assert not is_counted(more)


amounts = st.sampled_from(["cpu=100m memory=1Mi", "cpu=1/2 memory=/1Gi", "cpu=3 memory=300Mi", "cpu=0 memory=1k/1Ki"])


@given(st.lists(st.tuples(amounts, st.sampled_from(["", "cpu=2 memory=1Gi"])), max_size=12))
def test_charging_one_by_one_is_counting_all(each: list[tuple[str, str]]) -> None:
    now: Any = quota(pods="8", cpu="7", requests_memory="4Gi")
    made = []
    for main, init in each:
        new = pod(main, init=(init,) if init else ())
        after = charged(now, new)
        if isinstance(after, str) and after.startswith("failed quota"):
            continue
        if not isinstance(after, str):
            made.append(new)
            now = after
    assert now.status == counted(now, made, NOON)
