"""Carries over what nodes report of their pods.

Invariants: every write rests on the report and on the pod as they were decided
on; what others change in a pod is looked at again, so the last report always
has the last word; nothing is looked at twice while neither it nor its pod has
changed. There is hardly a minimum interval: a pod that becomes ready waits for
this loop. What comes while a transaction is under way makes up the next one.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Sequence
from math import inf

from podlane.api.codec import DecodeError, decode
from podlane.api.types import Lease, Node, Pod, PodReport
from podlane.errors import Conflict, NotFound
from podlane.runtime import metrics
from podlane.store import keys
from podlane.store.bulk import Change
from podlane.store.interface import Compare, Delete, KeyValue
from podlane.store.rules import unchanged
from podlane.store.writes import Lost, Write, Written, commit_all
from scheduler import reports
from scheduler.loop import Context, Loop

_REPORTS = metrics.counter(
    "podlane_reports_total", "Reports on pods by result: stored, removed, refused, dropped.", ["result"]
)


LARGEST = 256 * 1024
"""Bytes of a report; a pod is stored twice, and a larger one might not fit into a transaction."""
SETTLE = 5.0
"""Seconds for which what is wrong may yet become right."""


class ReportsLoop(Loop):
    """Stores the statuses that nodes report, and removes the pods they have ended."""

    name = "reports"
    watches = (PodReport, Pod, Node, Lease)
    min_interval = 0.005

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._inbox = self.snapshot.reports.slot(lambda key: not keys.is_event_report(key))
        self._enrolled = self.snapshot.enrolled.slot()
        self._hosts = reports.Hosts()
        self._pods, self._nodes = self.snapshot.pods.feed(), self.snapshot.nodes.feed()
        self._leases = self.snapshot.leases.feed()
        self._alive: frozenset[str] = frozenset()
        self._of_pod: dict[str, set[str]] = defaultdict(set)
        self._of_node: dict[str, set[str]] = defaultdict(set)
        self._done: dict[str, tuple[int, str]] = {}
        """By report: its revision and its pod's with which there was nothing left to do."""
        self._doubts: dict[str, tuple[int, float]] = {}
        """By report: the revision that is refused or to be dropped, and when that is final; inf: it was told."""
        self._next_doubt = inf
        self._dirty: set[str] = set()

    def decide(self) -> None:
        self._observe()
        looked_at = sorted(self._dirty)
        found = {key: kv for key in looked_at if (kv := self._inbox.get(key)) is not None}
        items = self._items(found)
        nodes = {name: self._reporter(name) for name in {item.key.node for item in items.values()}}
        plan = reports.plan(items.values(), nodes, self.context.clock.now())
        undone: set[str] = set()
        if not plan.empty:
            self._remove(plan.remove, undone)
            self._store(plan.store, undone)
            self._drop(plan.drop, undone)
            self._refuse(plan.refuse)
            self.log.debug("decided", **plan.sizes())
            for line in plan.lines():
                self.log.debug(line)
        # an error that was not foreseen leaves them all to be decided on once more
        self._dirty.difference_update(looked_at)
        self._dirty |= undone

    # --- what is to be looked at ----------------------------------------------------------------

    def _observe(self) -> None:
        came = self._inbox.take()
        if came.complete:
            for index in (self._of_pod, self._of_node, self._done, self._doubts):
                index.clear()
        for key, kv in came.objects.items():
            self._index(key, there=kv is not None)
        enrolled = self._enrolled.take()
        self._hosts = self._hosts.after(enrolled)
        pods, nodes, leases = self._pods.take(), self._nodes.take(), self._leases.take()
        if leases.complete or leases.objects:
            self._alive = self.snapshot.alive()
        if pods.complete or nodes.complete or leases.complete or enrolled.complete:
            self._dirty.update(*self._of_node.values())
        for name in pods.objects.keys() & self._of_pod.keys():
            self._dirty |= self._of_pod[name]
        for path in (*nodes.objects, *leases.objects, *enrolled.objects):  # a lease's is namespace/name
            self._dirty |= self._of_node.get(path.rpartition("/")[2], set())

        if (now := self.context.clock.now()) >= self._next_doubt:
            self._dirty.update(key for key, (_, due) in self._doubts.items() if due <= now)
            self._next_doubt = min((due for _, due in self._doubts.values() if due > now), default=inf)

    def _index(self, key: str, *, there: bool) -> None:
        node, _, pod = key.replace("/pods/", "/", 1).partition("/")
        for index, name in ((self._of_node, node), (self._of_pod, pod)):
            (index[name].add if there else index[name].discard)(key)
            if not index[name]:
                del index[name]
        if there:
            self._dirty.add(key)
            return
        for by_key in (self._done, self._doubts):
            by_key.pop(key, None)

    def _items(self, found: dict[str, KeyValue]) -> dict[str, reports.Item]:
        items: dict[str, reports.Item] = {}
        unreadable: list[KeyValue] = []
        why = ""
        for key, kv in found.items():
            try:
                named = keys.parse_report_key(kv.key)
                if len(kv.value) > LARGEST:
                    raise ValueError(f"it has {len(kv.value)} bytes, more than {LARGEST}")
                pod = self.snapshot.pods.get(f"{named.namespace}/{named.name}")
                if pod is not None and self._done.get(key) == (kv.mod_revision, pod.metadata.resource_version):
                    continue
                items[key] = reports.Item(named, kv.mod_revision, decode(PodReport, kv.value), pod)
            except (ValueError, DecodeError) as error:
                unreadable.append(kv)
                why = str(error)
        if unreadable:
            self._count("dropped", len(unreadable))
            self.log.warning("reports dropped", reports=len(unreadable), one=unreadable[-1].key, why=why)
            writes = [Write((_as_read(kv.key, kv.mod_revision),), (Delete(kv.key),)) for kv in unreadable]
            commit_all(self.registry.store, writes, self.registry.fence)
        return items

    def _reporter(self, node: str) -> reports.Reporter:
        return self._hosts.reporter(node, self.snapshot.nodes.get(node), alive=node in self._alive)

    # --- carrying out ---------------------------------------------------------------------------

    def _store(self, wanted: Sequence[reports.Stored], undone: set[str]) -> None:
        changes = [Change(_pod(s.item), s.pod, compare=(_as_read(s.item.report_key, s.item.revision),)) for s in wanted]
        for stored, outcome in zip(wanted, self.registry.update_many(changes), strict=True):
            if isinstance(outcome, Exception):
                self._failed(f"store status of pod {stored.item.pod_name}", outcome, stored.item, undone)
                continue
            self.snapshot.pods.wrote(outcome)
            self._done[_short(stored.item)] = stored.item.revision, outcome.metadata.resource_version
            self._count("stored")

    def _remove(self, wanted: Sequence[reports.Item], undone: set[str]) -> None:
        outcomes = self.registry.delete_many([_pod(item) for item in wanted], grace_seconds=0)
        for item, outcome in zip(wanted, outcomes, strict=True):
            pod = _pod(item)
            if isinstance(outcome, NotFound | Conflict):  # gone, or another pod has the name now
                self.snapshot.pods.deleted(pod)
            elif isinstance(outcome, Exception):
                self._failed(f"remove pod {item.pod_name}", outcome, item, undone)
                continue
            elif outcome.metadata.finalizers:
                self.snapshot.pods.wrote(outcome)
            else:
                self.snapshot.pods.deleted(pod)
            self._count("removed")
            self.log.info("pod removed", pod=item.pod_name, node=item.key.node)

    def _drop(self, wanted: Iterable[tuple[reports.Item, str]], undone: set[str]) -> None:
        """Take away what has long been wrong, unless the pod is not what we see."""
        settled = [(item, why) for item, why in wanted if self._has_settled(item)]
        writes = [Write((_as_read(i.report_key, i.revision), _as_seen(i)), (Delete(i.report_key),)) for i, _ in settled]
        outcomes = commit_all(self.registry.store, writes, self.registry.fence)
        dropped: list[tuple[reports.Item, str]] = []
        for (item, why), outcome in zip(settled, outcomes, strict=True):
            match outcome:
                case Written():
                    dropped.append((item, why))
                case Lost():
                    del self._doubts[_short(item)]  # what has changed instead is on its way to us
                case error:
                    self._failed(f"drop report {item}", error, item, undone)
        if dropped:
            self._count("dropped", len(dropped))
            self.log.warning("reports dropped", reports=len(dropped), one=str(dropped[0][0]), why=dropped[0][1])

    def _refuse(self, wanted: Iterable[tuple[reports.Item, str]]) -> None:
        """Tell of it, once."""
        for item, why in wanted:
            if self._has_settled(item):
                self._doubts[_short(item)] = item.revision, inf
                self._count("refused")
                self.log.warning("report refused", node=item.key.node, pod=item.pod_name, why=why)
                self.context.events.event(_pod(item), "Warning", "ReportRefused", f"Node {item.key.node}: {why}")

    def _has_settled(self, item: reports.Item) -> bool:
        """Whether it has been so for SETTLE: an agent may know sooner than we what has changed, and we see late that a
        report went with its pod.
        """
        key, now = _short(item), self.context.clock.now()
        if self._doubts.get(key, (0, 0.0))[0] != item.revision:
            self._doubts[key] = item.revision, now + SETTLE
        due = self._doubts[key][1]
        if now < due < inf:
            self._next_doubt = min(self._next_doubt, due)
            self.wake_at(due)
        return due <= now

    def _failed(self, step: str, error: Exception, item: reports.Item, undone: set[str]) -> None:
        """Of a lost race, what won it is on its way to us."""
        if not isinstance(error, Conflict | NotFound):
            undone.add(_short(item))
        self.failed(step, error)

    def _count(self, result: str, number: int = 1) -> None:
        _REPORTS.labels(result).inc(number)


def _pod(item: reports.Item) -> Pod:
    assert item.pod is not None  # else it is dropped
    return item.pod


def _short(item: reports.Item) -> str:
    return item.report_key.removeprefix(keys.REPORTS)


def _as_read(key: str, revision: int) -> Compare:
    return Compare.modified_at(key, revision)


def _as_seen(item: reports.Item) -> Compare:
    if item.pod is None:
        return Compare.absent(keys.pod_key(item.key.namespace, item.key.name))
    return unchanged(item.pod)
