"""What a node reports of its pods: its outbox in the store, which the scheduler's leader carries over.

Owns: `/podlane/reports/{node}/pods/{namespace}/{name}`, the status of a pod as
the agent of its node sees it, and the rule of what of a pod's status a report
says. Invariants: only the agent of the node writes there, and it writes nothing
of pods elsewhere, so whoever stole a node can lie about that node only; a report
stays for as long as its pod is there, since it is the agent's last word, to be
applied again when others changed what it said; it goes with its pod, in the same
transaction (rules.removal). Source: our own; in Kubernetes the API server's node
authorizer does this, and here clients speak to etcd. See ADR 20.
"""

from __future__ import annotations

from collections.abc import Mapping
from datetime import datetime

import msgspec

from podlane.api.codec import DecodeError, decode, encode
from podlane.api.meta import get_condition, is_pod_finished
from podlane.api.types import Condition, Pod, PodReport, PodStatus
from podlane.errors import StoreUnavailable
from podlane.runtime.log import get_logger
from podlane.store import keys
from podlane.store.interface import Delete, Put, Store
from podlane.store.writes import Write, commit_all

REPORTED = ("Initialized", "ContainersReady", "Ready")
"""Conditions that are the agent's to say. Who placed the pod says PodScheduled, unless its author chose the node."""


def reported_status(pod: Pod, said: PodStatus) -> PodStatus:
    """The status of a pod with all in it that is its agent's to say as `said`; the same object if it is so.

    A finished pod stays finished as it did: whoever says otherwise has not heard yet.
    """
    old = pod.status
    if is_pod_finished(pod) and said.phase != old.phase:
        return old
    new = msgspec.structs.replace(
        said,
        conditions=_conditions(old.conditions, said.conditions),
        qos_class=old.qos_class,
        nominated_node_name=old.nominated_node_name,
        observed_generation=old.observed_generation,
    )
    return old if new == old else new


def carried_over(pod: Pod, said: PodStatus, now: datetime) -> PodStatus:
    """What the leader stores of a report: `reported_status` with transition times that do not go back.

    A condition that is so again, though its agent never said otherwise, is so since `now`. The same object when
    there is nothing to store.
    """
    new = reported_status(pod, said)
    conditions = tuple(_timed(get_condition(pod.status.conditions, c.type), c, now) for c in new.conditions)
    new = msgspec.structs.replace(new, conditions=conditions)
    return pod.status if new == pod.status else new


def is_marked(pod: Pod) -> bool:
    """Whether the leader made the pod not ready because its node was silent: its agent says both or neither."""
    ready, containers = (get_condition(pod.status.conditions, kind) for kind in ("Ready", "ContainersReady"))
    return ready is not None and ready.status == "False" and containers is not None and containers.status == "True"


def _conditions(old: tuple[Condition, ...], said: tuple[Condition, ...]) -> tuple[Condition, ...]:
    """In their old order, so that what says the same is equal."""
    there = {condition.type for condition in old}
    taken = {c.type: c for c in said if c.type in REPORTED or (c.type == "PodScheduled" and c.type not in there)}
    kept = [taken.pop(c.type, c) for c in old if c.type in taken or c.type not in REPORTED]
    return (*kept, *taken.values())


def _timed(before: Condition | None, after: Condition, now: datetime) -> Condition:
    was = before.last_transition_time if before is not None else None
    since = after.last_transition_time
    if before is None or was is None or (since is not None and since >= was):
        return after
    return msgspec.structs.replace(after, last_transition_time=was if before.status == after.status else now)


class Outbox:
    """A node's reports of its pods, by "namespace/name". Every call may raise StoreUnavailable."""

    def __init__(self, store: Store, node: str) -> None:
        self._store = store
        self._node = node
        self._prefix = keys.pod_reports_prefix(node)
        self._log = get_logger("reports")

    def read(self) -> dict[str, PodReport]:
        """What was reported, by this agent or the one before it; what cannot be read is as good as not there."""
        found: dict[str, PodReport] = {}
        for kv in self._store.list(self._prefix).items:
            try:
                found[kv.key.removeprefix(self._prefix)] = decode(PodReport, kv.value)
            except DecodeError as error:
                self._log.warning("left out", key=kv.key, error=str(error))
        return found

    def write(self, reports: Mapping[str, PodReport | None]) -> None:
        """Put these in the place of what was reported, many to a transaction; None takes one back."""
        writes = [Write((), (self._op(name, report),)) for name, report in reports.items()]
        for outcome in commit_all(self._store, writes):
            if isinstance(outcome, StoreUnavailable):
                raise outcome

    def _op(self, name: str, report: PodReport | None) -> Put | Delete:
        key = keys.pod_report_key(self._node, *name.split("/", 1))
        return Delete(key) if report is None else Put(key, encode(report))
