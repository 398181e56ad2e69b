"""The decision: which node each unassigned pod goes to, what ends for it, or why none will do.

Owns: the order of the classes, and what is remembered from plan to plan.
Invariants: a pod is placed only where every filter lets it, counted with every
pod placed before it in the same plan and with the room kept for nominated pods
of its priority or higher; a class that fits nowhere is not tried again until
something changes that could let it fit: a node that would take it now (or
could, after preemption), a count its rules depend on, or nodes and labels if
they depend on topology. Source: kube-scheduler's queue and queueing hints.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Collection, Container, Iterable, Sequence
from dataclasses import dataclass, field

from podlane.api.meta import namespaced_name
from podlane.api.types import Node, Pod
from scheduler.placement import preemption
from scheduler.placement.board import Board
from scheduler.placement.classes import FEW_DOMAINS, ClassRun, coarse_keys
from scheduler.placement.counts import Count
from scheduler.placement.explain import explain
from scheduler.placement.model import Placement, Plan, Preemption, Unplaced
from scheduler.placement.nodes import NodeState
from scheduler.placement.rules import Rules, refuses
from scheduler.placement.shape import Profile, Shape
from scheduler.placement.state import NOTHING, Members, State
from scheduler.placement.wants import Namespaces
from scheduler.view import Changes

MOST_BOARDS = 64
"""Boards kept; one holds an entry for each node."""

Keyed = tuple[str, Pod]


@dataclass(slots=True)
class _Asleep:
    """What was when a class fitted nowhere: it waits for something beyond this.

    `counts` are those its rules depend on, `position` is of State's journal.
    """

    why: str
    counts: tuple[Count, ...]
    position: int = 0
    epoch: int = 0
    marks: tuple[int, ...] = ()
    counts_version: int = 0
    outdated: bool = False

    def note(self, state: State) -> None:
        """Remember how things are."""
        self.position, self.epoch, self.counts_version = state.position, state.epoch, state.counts_version
        self.marks = self.marks_now

    @property
    def marks_now(self) -> tuple[int, ...]:
        return tuple(count.mark for count in self.counts)


class _Turn:
    """A class whose turn comes, with its pods in the order of age."""

    def __init__(self, members: Members) -> None:
        self.members = members
        self.pods: list[Keyed] = sorted(members.waiting.items(), key=lambda item: (_created(item[1]), item[0]))

    @property
    def order(self) -> tuple[int, float, str]:
        key, oldest = self.pods[0]
        return -self.members.shape.priority, _created(oldest), key


@dataclass(slots=True)
class _Draft:
    """A plan while it is made."""

    bind: list[Placement] = field(default_factory=list)
    preempt: list[Preemption] = field(default_factory=list)
    unschedulable: list[Unplaced] = field(default_factory=list)
    tried: int = 0


class Planner:
    """Tell it of changes with `update`, ask it with `plan`. Not thread-safe. `few`: see classes.FEW_DOMAINS."""

    def __init__(self, few: int = FEW_DOMAINS) -> None:
        self.state = State()
        self._few = few
        self._boards: OrderedDict[tuple[Profile, tuple[str, ...]], Board] = OrderedDict()
        self._asleep: dict[bytes, _Asleep] = {}

    def update(
        self,
        *,
        pods: Changes[Pod] = NOTHING,
        nodes: Changes[Node] = NOTHING,
        alive: Iterable[str] | None = None,
        namespaces: Namespaces | None = None,
    ) -> None:
        """See State.update."""
        self.state.update(pods=pods, nodes=nodes, alive=alive, namespaces=namespaces)

    def plan(self) -> Plan:
        """Decide for every pod that waits, the highest priority first, then the oldest class."""
        turns = [_Turn(members) for members in self.state.waiting.values()]
        self._asleep = {key: asleep for key, asleep in self._asleep.items() if key in self.state.waiting}
        plan = _Draft()
        for turn in sorted(turns, key=lambda turn: turn.order):
            self._take_turn(turn, plan)
        return Plan(tuple(plan.bind), tuple(plan.preempt), tuple(plan.unschedulable), plan.tried)

    def explain(self, pod: Pod) -> str:
        """Why a pod of the last plan fits nowhere, by the numbers of now. Raises KeyError for another pod."""
        shape = self.state.members_of(pod).shape
        asleep = self._asleep[shape.key]
        if asleep.outdated:
            asleep.why, asleep.outdated = explain(self.state, shape, Rules(self.state, shape)), False
        return asleep.why

    # --- one class ------------------------------------------------------------------------

    def _take_turn(self, turn: _Turn, plan: _Draft) -> None:
        pods = turn.pods
        if any(pod.status.nominated_node_name for _, pod in pods):
            at_home, pods = self._nominated_that_fit(turn)
            plan.bind += at_home
        if pods and not self._still_asleep(turn, pods):
            plan.tried += 1
            pods = self._place(turn, pods, plan)
        if pods:
            self._leave(turn, pods, plan)

    def _nominated_that_fit(self, turn: _Turn) -> tuple[list[Placement], list[Keyed]]:
        """Bind the pods whose room has become free; the others are to be placed."""
        rules = Rules(self.state, turn.members.shape)
        bound: list[Placement] = []
        left: list[Keyed] = []
        for key, pod in turn.pods:
            node = self.state.nodes.get(pod.status.nominated_node_name)
            if node is not None and refuses(node, turn.members.shape, rules) is None:
                self.state.assume(key, pod, turn.members, node.name)
                rules.recount()
                bound.append(Placement(pod, node.name))
            else:
                left.append((key, pod))
        return bound, left

    def _place(self, turn: _Turn, pods: list[Keyed], plan: _Draft) -> list[Keyed]:
        """Place what fits; returns what does not, for which the class goes to sleep."""
        shape = turn.members.shape
        self._asleep.pop(shape.key, None)
        rules = Rules(self.state, shape)
        run = ClassRun(self.state, turn.members, rules, self._board(shape, rules))
        nodes = run.place(pods)
        run.end()
        plan.bind += (Placement(pod, node) for (_, pod), node in zip(pods, nodes, strict=False))
        return pods[len(nodes) :]

    def _board(self, shape: Shape, rules: Rules) -> Board:
        keys = coarse_keys(self.state, rules, self._few)
        board = self._boards.get((shape.profile, keys))
        if board is None:
            board = self._boards[shape.profile, keys] = Board(shape.profile, keys)
            if len(self._boards) > MOST_BOARDS:
                self._boards.popitem(last=False)
        self._boards.move_to_end((shape.profile, keys))
        return board

    # --- classes that fit nowhere ------------------------------------------------------------

    def _still_asleep(self, turn: _Turn, pods: Sequence[Keyed]) -> bool:
        """Whether nothing has changed since the class fitted nowhere that could let one of the pods fit."""
        state, shape = self.state, turn.members.shape
        asleep = self._asleep.get(shape.key)
        if (
            asleep is None
            or asleep.counts_version != state.counts_version
            or asleep.marks != asleep.marks_now
            or (asleep.counts and asleep.epoch != state.epoch)
            or any(pod.status.nominated_node_name and not self._is_making_room(pod, shape) for _, pod in pods)
        ):
            return False
        touched = state.touched_since(asleep.position)
        if touched is None:
            return False
        nodes = [state.nodes[name] for name in touched if name in state.nodes]
        if self._any_fits(shape, nodes, spoken_for={pod.status.nominated_node_name for _, pod in pods}):
            return False
        asleep.outdated = asleep.outdated or bool(touched)
        asleep.position = state.position
        return True

    def _any_fits(self, shape: Shape, nodes: Sequence[NodeState], spoken_for: Container[str]) -> bool:
        """Whether a pod fits on one of the nodes now, or would without pods of lower priority.

        `spoken_for`: nodes where those make room for others of the class already.
        """
        free = [node for node in nodes if node.has_room(shape.profile)]
        if not free and not self._may_preempt(shape):
            return False
        rules = Rules(self.state, shape)
        return any(refuses(node, shape, rules) is None for node in free) or (
            self._may_preempt(shape)
            and any(
                preemption.candidate_on(node, self.state, shape, rules) is not None
                for node in nodes
                if node.name not in spoken_for
            )
        )

    def _leave(self, turn: _Turn, pods: Sequence[Keyed], plan: _Draft) -> None:
        """Say why; keep the room that is being made for some, and make room for others if the class is not asleep."""
        state, members, shape = self.state, turn.members, turn.members.shape
        asleep = self._asleep.get(shape.key)
        choice = None
        if asleep is None:
            rules = Rules(state, shape)
            asleep = self._asleep[shape.key] = _Asleep(explain(state, shape, rules), rules.decisive)
            asleep.note(state)
            choice = preemption.Choice(state, shape, rules) if self._may_preempt(shape) else None
        # first those for which room is being made: it is not free for the others
        for key, pod in sorted(pods, key=lambda item: not self._is_making_room(item[1], shape)):
            node = pod.status.nominated_node_name if self._is_making_room(pod, shape) else ""
            if not node and choice is not None and (chosen := choice.take()) is not None:
                node = chosen.node
                if chosen.victims:  # none, when enough end already
                    plan.preempt.append(Preemption(pod, node, tuple(victim.pod for victim in chosen.victims)))
                for victim in chosen.victims:
                    state.end(victim)
            if node:
                state.hold(key, pod, members, node)
            plan.unschedulable.append(Unplaced(pod, asleep.why, node, asleep.outdated))

    def _may_preempt(self, shape: Shape) -> bool:
        return shape.preempts and any(priority < shape.priority for priority in self.state.priorities)

    def _is_making_room(self, pod: Pod, shape: Shape) -> bool:
        """Pods of lower priority still are about to leave the node that the pod is nominated for."""
        node = self.state.nodes.get(pod.status.nominated_node_name)
        return node is not None and any(p.ending and p.shape.priority < shape.priority for p in node.pods.values())


def _created(pod: Pod) -> float:
    created = pod.metadata.creation_timestamp
    return created.timestamp() if created else float("inf")


def plan(
    nodes: Iterable[Node], pods: Iterable[Pod], alive: Collection[str], namespaces: Namespaces | None = None
) -> Plan:
    """Decide once, from everything. `alive`: names of the nodes with a heartbeat."""
    planner = Planner()
    planner.update(
        pods=Changes({namespaced_name(pod): pod for pod in pods}, complete=True),
        nodes=Changes({node.metadata.name: node for node in nodes}, complete=True),
        alive=alive,
        namespaces=namespaces,
    )
    return planner.plan()
