"""Nodes: which are gone or not ready, since when, and when their pods are given up.

Owns: liveness, taints and eviction. A node is alive while it has a heartbeat
(scheduler.heartbeats says who has); no clock is ever compared with another
machine's. Invariants:
- a node that is gone serves no endpoints and gets no pods from the moment its
  heartbeat is gone, and says so by its taints;
- a pod of a node that is gone is marked not ready, once per outage: its agent,
  which knows better, has the last word as soon as it is back;
- a pod goes when a NoExecute taint has been there for longer than it tolerates
  (`grace` seconds, where it says nothing, of an unreachable node), counted by
  this leader from what it has seen itself: a new leader evicts later, never
  sooner;
- of nodes that are gone or not ready no more than a `share` are given up
  within PACE seconds, and none at all while most of the cluster seems gone, for
  that is the network's fault, or ours. What an operator's taint says is done
  at once.
Source: Kubernetes' node lifecycle, taint eviction and pod garbage collection,
with the lease in the place of timestamps. See ADR 15 and 24.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import inf

from podlane.api import taints
from podlane.api.meta import is_pod_ready, namespaced_name, utcnow_from
from podlane.api.types import Node, Pod, Taint
from scheduler import nodetaints
from scheduler.nodeseen import Seen, look, ready_condition, ready_status

UNKNOWN_REASON = "NodeStatusUnknown"
MANY = 3
"""From this many nodes on, losing more than half of them at once stops eviction."""

SETTLE = 2.0
"""Seconds before anything is said of a node that may be about to speak for itself:
one that just registered (its object comes just before or after its heartbeat) or came back."""

PACE = 10.0
"""Seconds within which no more than the share of nodes is given up: Kubernetes' pace is one node in ten seconds."""


@dataclass(frozen=True, slots=True)
class Patience:
    """Seconds a pod without a toleration stays on a node that is unreachable, and on one that is not ready.

    `share`: of all nodes, those that may be given up within PACE seconds; always at least one.
    `recovery`: seconds that nodes are given to come back, before anything counts, when an
    outage of most of them ends: an agent notices, tries again, and gets another lease.
    """

    grace: float = 5.0
    not_ready: float = 300.0
    share: float = 0.25
    recovery: float = 10.0


@dataclass(frozen=True, slots=True)
class Eviction:
    """A pod to be given up. `lost`: nobody is there to end it. `missing`: its node has no object: to be verified."""

    pod: Pod
    node: str
    why: str
    lost: bool = False
    missing: bool = False


@dataclass(frozen=True, slots=True)
class Retaint:
    """The taints that node is to have, and what that changes, for people."""

    taints: tuple[Taint, ...]
    change: str


_ACTIONS = ("mark_unknown", "mark_ready", "retaint", "evict", "unready", "tell")


@dataclass(frozen=True, slots=True)
class Plan:
    """`mark_unknown` and `mark_ready` are nodes whose conditions are to be written, `retaint` has new taints by node.

    `unready`: pods whose Ready condition is to become False. `tell`: nodes of
    which people are to hear that they became ready, or no longer are.
    `held`: the nodes, of `total`, whose pods are kept because too many are
    gone; `waiting`: those whose turn is yet to come. `seen` is what to pass in
    next time. `next_at` (Unix seconds) is when time alone will change the plan.
    """

    seen: Mapping[str, Seen] = field(default_factory=dict)
    mark_unknown: tuple[str, ...] = ()
    mark_ready: tuple[str, ...] = ()
    retaint: Mapping[str, Retaint] = field(default_factory=dict)
    evict: tuple[Eviction, ...] = ()
    unready: tuple[Pod, ...] = ()
    tell: tuple[str, ...] = ()
    held: tuple[str, ...] = ()
    waiting: tuple[str, ...] = ()
    total: int = 0
    next_at: float | None = None

    @property
    def empty(self) -> bool:
        return not any(getattr(self, name) for name in _ACTIONS)

    def sizes(self) -> dict[str, int]:
        """How many are in each bucket that is not empty."""
        return {name: len(getattr(self, name)) for name in (*_ACTIONS, "held", "waiting") if getattr(self, name)}

    def __str__(self) -> str:
        return "\n".join(self.lines())

    def lines(self) -> Iterator[str]:
        yield from (f"mark node {name} unknown" for name in self.mark_unknown)
        yield from (f"mark node {name} ready" for name in self.mark_ready)
        yield from (f"taint node {name} {retaint.change}" for name, retaint in self.retaint.items())
        yield from (f"evict pod {namespaced_name(e.pod)}: {e.why}" for e in self.evict)
        yield from (f"mark pod {namespaced_name(p)} not ready: node {p.spec.node_name} is gone" for p in self.unready)
        yield from (f"tell of node {name}: {'' if self.seen[name].told_ready else 'not '}ready" for name in self.tell)
        if self.held:
            yield f"hold {len(self.held)}/{self.total} nodes: {' '.join(self.held)}"
        if self.waiting:
            yield f"wait to give up nodes {' '.join(self.waiting)}"


def unreachable(nodes: Iterable[Node], alive: Collection[str]) -> frozenset[str]:
    """The nodes without a heartbeat: no new pods, no endpoints.

    Empty when not one node has a heartbeat: then nobody is left to be told, and
    the last known endpoints may still work, so they stand.
    """
    names = {node.metadata.name for node in nodes}
    gone = frozenset(names.difference(alive))
    return frozenset() if len(gone) == len(names) else gone


def plan(
    nodes: Iterable[Node],
    alive: Collection[str],
    pods: Mapping[str, Collection[Pod]],
    seen: Mapping[str, Seen],
    *,
    now: float,
    patience: Patience,
) -> Plan:
    """Decide. `alive`: names with a heartbeat key; `pods` by node; `seen`: the last plan's (empty for a new leader)."""
    known = {node.metadata.name: node for node in sorted(nodes, key=lambda n: n.metadata.name)}
    memory = {name: look(seen.get(name), known.get(name), name in alive, now) for name in sorted({*known, *pods})}
    gone, broken = _hold(known, memory)
    held = {*gone, *broken}
    for name in held:
        # what a pod tolerates counts again when the outage ends, and later: nodes do not all come back in one instant
        memory[name] = replace(memory[name], evict_from=now + patience.recovery)
    wakes: list[float] = []
    unknown, ready = _marks(known, memory, now, wakes)
    stays = {
        name: [_Stay.of(pod, known.get(name), memory[name], patience) for pod in pods[name]]
        for name in sorted(pods)
        if memory[name].trouble or memory[name].tainted
    }
    due = [name for name in stays if name in known and any(now >= stay.until for stay in stays[name])]
    at_once = max(1, int(patience.share * len(known)))
    waiting, turn = _take_turns([name for name in due if name not in held], memory, at_once, now)
    wakes += [] if turn is None else [turn]
    kept = {*held, *waiting}
    evict: list[Eviction] = []
    for name, of in stays.items():
        for stay in of:
            if (eviction := stay.eviction(now, given_up=name not in kept)) is not None:
                evict.append(eviction)
            elif (moment := stay.next_at(now, given_up=name not in kept)) is not None:
                wakes.append(moment)
    silent = {
        name: pods[name]
        for name in known.keys() & pods.keys() - held
        if not memory[name].alive and (name in unknown or ready_status(known[name]) == "Unknown")
    }
    unready = _mark_pods(silent, {e.pod.metadata.uid for e in evict}, memory, now, wakes)
    news = _news(known, memory)
    return Plan(
        seen=memory,
        mark_unknown=tuple(unknown),
        mark_ready=tuple(ready),
        retaint=_retaints(known, memory, ready, held, now),
        evict=tuple(evict),
        unready=tuple(unready),
        tell=news,
        held=tuple(gone),
        waiting=tuple(waiting),
        total=len(known),
        next_at=min(wakes, default=None),
    )


@dataclass(frozen=True, slots=True)
class _Stay:
    """How long a pod stays where it is. `until`: for its node's trouble; `expelled`: for an operator's taint."""

    pod: Pod
    node: str
    alive: bool
    missing: bool
    until: float
    expelled: float
    expelled_by: str

    @classmethod
    def of(cls, pod: Pod, node: Node | None, state: Seen, patience: Patience) -> _Stay:
        tolerations = pod.spec.tolerations
        until = expelled = inf
        by = ""
        if node is None and state.trouble:
            until = state.evict_from + patience.grace  # to tolerate that would be to wait for nothing
        elif state.trouble:
            default = patience.grace if state.trouble == taints.UNREACHABLE else patience.not_ready
            taint = Taint(key=state.trouble, effect="NoExecute")
            until = nodetaints.leaves_at(tolerations, taint, state.evict_from, default)
        for taint, since in state.tainted.items():
            if (moment := nodetaints.leaves_at(tolerations, taint, since)) < expelled:
                expelled, by = moment, taints.spelled(taint)
        return cls(pod, pod.spec.node_name, state.alive, node is None, until, expelled, by)

    @property
    def _ending(self) -> bool:
        return self.pod.metadata.deletion_timestamp is not None

    def eviction(self, now: float, *, given_up: bool) -> Eviction | None:
        """What is to be done now, if anything. A pod that ends already only needs help where nobody ends it."""
        if now >= self.until and given_up and not (self._ending and self.alive):
            why = "does not exist" if self.missing else "is not ready" if self.alive else "is gone"
            return Eviction(self.pod, self.node, f"node {self.node} {why}", lost=not self.alive, missing=self.missing)
        if now >= self.expelled and not self._ending:
            return Eviction(self.pod, self.node, f"node {self.node} has the taint {self.expelled_by}")
        return None

    def next_at(self, now: float, *, given_up: bool) -> float | None:
        """When time alone will change what `eviction` says."""
        moments = [self.until] if given_up and not (self._ending and self.alive) else []
        moments += [] if self._ending else [self.expelled]
        return min((m for m in moments if now < m < inf), default=None)


def _hold(known: Mapping[str, Node], memory: Mapping[str, Seen]) -> tuple[list[str], list[str]]:
    """Whose pods are kept: the gone nodes if most are gone, and those that are not ready if most are that or gone."""
    gone = [name for name in known if not memory[name].alive]
    unready = [name for name in known if memory[name].alive and memory[name].trouble]
    total = len(known)
    return gone if _most(len(gone), total) else [], unready if _most(len(gone) + len(unready), total) else []


def _most(some: int, total: int) -> bool:
    return some > 0 and (some == total or (total >= MANY and 2 * some > total))


def _take_turns(
    due: Sequence[str], memory: dict[str, Seen], at_once: int, now: float
) -> tuple[list[str], float | None]:
    """Give up those whose turn it is, longest in trouble first, and note it in `memory`.

    Returns the others, and when the next of them may go.
    """
    recent = [seen.given_up for seen in memory.values() if seen.given_up > now - PACE]
    queue = sorted(
        (name for name in due if not memory[name].is_given_up), key=lambda name: (memory[name].evict_from, name)
    )
    room = max(0, at_once - len(recent))
    for name in queue[:room]:
        memory[name] = replace(memory[name], given_up=now)
        recent.append(now)
    return queue[room:], min(recent) + PACE if queue[room:] else None


def _marks(
    known: Mapping[str, Node], memory: Mapping[str, Seen], now: float, wakes: list[float]
) -> tuple[list[str], list[str]]:
    """A node that went is marked at once; one never seen alive, and one that came back, after SETTLE."""
    unknown: list[str] = []
    ready: list[str] = []
    for name, node in known.items():
        state = memory[name]
        condition = ready_condition(node)
        if state.alive:
            wrong = condition is not None and condition.reason == UNKNOWN_REASON
            due, bucket = state.since + SETTLE, ready
        else:
            wrong = condition is None or condition.status != "Unknown"
            due, bucket = state.since + (0 if state.ever_alive else SETTLE), unknown
        if wrong and now >= due:
            bucket.append(name)
        elif wrong:
            wakes.append(due)
    return unknown, ready


def _retaints(
    known: Mapping[str, Node], memory: Mapping[str, Seen], ready: Sequence[str], held: Collection[str], now: float
) -> dict[str, Retaint]:
    """The nodes whose taints do not say what is so."""
    changes: dict[str, Retaint] = {}
    for name, node in known.items():
        state = memory[name]
        status = "True" if name in ready else ready_status(node)
        if not state.alive and not state.ever_alive and status != "Unknown" and now < state.since + SETTLE:
            continue  # it may be about to register
        trouble = nodetaints.trouble(status, alive=state.alive)
        wanted = nodetaints.wanted(node, trouble, evicting=name not in held, now=utcnow_from(now))
        if wanted != node.spec.taints:
            changes[name] = Retaint(wanted, nodetaints.difference(node.spec.taints, wanted))
    return changes


def _mark_pods(
    silent: Mapping[str, Collection[Pod]],
    evicted: Collection[str],
    memory: dict[str, Seen],
    now: float,
    wakes: list[float],
) -> list[Pod]:
    """Those of silent nodes that still say they are ready, noted in `memory`; but those evicted (UIDs) go anyway.

    After an outage of most nodes this waits, as eviction does, for the others to come back.
    """
    unready: list[Pod] = []
    for name in sorted(silent):
        state = memory[name]
        done = state.marked.union(evicted)
        fresh = [pod for pod in silent[name] if is_pod_ready(pod) and pod.metadata.uid not in done]
        if fresh and now < state.evict_from:
            wakes.append(state.evict_from)
        elif fresh:
            memory[name] = replace(state, marked=state.marked.union(pod.metadata.uid for pod in fresh))
            unready += fresh
    return unready


def _news(known: Mapping[str, Node], memory: dict[str, Seen]) -> tuple[str, ...]:
    """The nodes that became ready, or no longer are, whoever said so: noted in `memory`.

    Only what the heartbeat bears out counts: a node on its way back may say something before its heartbeat does.
    """
    news: list[str] = []
    for name, node in known.items():
        state, status = memory[name], ready_status(node)
        if status is None or (status == "Unknown") == state.alive:
            continue
        if (status == "True") != state.told_ready:
            memory[name] = replace(state, told_ready=status == "True")
            news.append(name)
    return tuple(news)
