"""Placing the pods of one class, one after the other, at a cost that does not grow with the nodes.

Owns: the choice of a node. Invariant: each pod goes to the node that a pass
over all nodes would find best at that moment (tests/unit/
test_scheduler_placement_random.py holds it to that pass). How:

- topology keys with few domains (zones) are judged once for each group of nodes
  that share them; keys with many (the node itself) for the nodes whose counts
  are not zero, `marked`. All other nodes are as the Board orders them, for
  whatever their pods are, they are none that the class cares about;
- a placement changes the counts of its own domains only, so only their groups
  and nodes are judged again; where the emptiest domain of a spread fills up,
  those it had ruled out are.

So a pod costs O(groups + log nodes). Order: fewest taints that would rather
not have it, most preferred (weights of node and pod affinity), evenest by the
ScheduleAnyway constraints, fewest siblings on the node, then in the zone, then
the least full (with images that are there taken off), then by name.
"""

from __future__ import annotations

import heapq
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from operator import eq

from podlane.api.types import Pod
from scheduler.placement.board import Board, Group
from scheduler.placement.nodes import NodeState
from scheduler.placement.rules import Rules, Verdict
from scheduler.placement.state import Members, State

Rank = tuple[int, int, float, int, int, float, str]
"""(avoided, -preferred, crowd, siblings, neighbours, how full, name)."""

FEW_DOMAINS = 8
"""Up to this many domains, or the square root of the nodes, are judged all for each pod."""


def coarse_keys(state: State, rules: Rules, few: int) -> tuple[str, ...]:
    """The keys by which nodes are put in groups, so that there are few groups."""
    most = max(few, math.isqrt(len(state.nodes)))
    keys: list[str] = []
    groups = 1
    wanted = {count.key for count in rules.all.counts() if count.key}
    for number, key in sorted((len(state.domains(key)), key) for key in wanted):
        if (groups := groups * (number + 1)) > most + 1:
            break
        keys.append(key)
    return tuple(sorted(keys))


class ClassRun:
    """One class in one plan: `place` its pods, then `end`."""

    def __init__(self, state: State, members: Members, rules: Rules, board: Board) -> None:
        self._state = state
        self._members = members
        self._rules = rules
        self._board = board
        self._coarse = rules.all.only(lambda key: key in board.keys)
        self._fine = rules.all.only(lambda key: key not in board.keys)
        self._fine_keys = tuple(dict.fromkeys(count.key for count in self._fine.counts()))
        self._empty_crowd = float(sum(spread.max_skew - 1 for _, spread, _ in self._fine.crowds))
        self._groups: dict[Group, Verdict | None] = {}
        self._marked: set[str] = set()
        self._rank_of: dict[str, Rank | None] = {}
        self._ranked: dict[Group, list[Rank]] = defaultdict(list)
        self._shut: set[str] = set()  # marked nodes that are ruled out by the pods around
        self._aside: list[str] = []
        self._alone = rules.alone
        board.sync(state)
        self._judge_groups(board.groups)
        self._mark(self._concerned_nodes())

    def place(self, pods: Sequence[tuple[str, Pod]]) -> list[str]:
        """Place as many as fit, in this order; returns the nodes."""
        nodes: list[str] = []
        for key, pod in pods:
            name = self._best()
            if name is None:
                break
            nodes.append(name)
            self._state.assume(key, pod, self._members, name)
            self._grown(self._state.nodes[name])
        return nodes

    def end(self) -> None:
        """Give the board back what was moved."""
        for name in self._aside:
            if name in self._state.nodes:
                self._board.push(self._state.nodes[name])

    # --- choosing -----------------------------------------------------------------------

    def _best(self) -> str | None:
        best: Rank | None = None
        for group, verdict in self._groups.items():
            if verdict is None:
                continue
            for rank in (self._best_marked(group), self._best_unmarked(group)):
                if rank is None:
                    continue
                avoided, preferred, crowd, siblings, neighbours, load, name = rank
                full = (
                    avoided,
                    preferred - verdict.preferred,
                    crowd + verdict.crowd,
                    siblings,
                    neighbours + verdict.neighbours,
                    load,
                    name,
                )
                if best is None or full < best:
                    best = full
        return best[-1] if best is not None else None

    def _best_marked(self, group: Group) -> Rank | None:
        heap = self._ranked.get(group)
        while heap:
            if self._rank_of.get(heap[0][-1]) is heap[0]:
                return heap[0]
            heapq.heappop(heap)
        return None

    def _best_unmarked(self, group: Group) -> Rank | None:
        if self._fine.near and not self._alone:
            return None  # only marked nodes have pods to be near to
        found = self._board.best(group, self._state, self._marked, self._aside)
        if found is None:
            return None
        (avoided, preferred, load), name = found
        return avoided, preferred, self._empty_crowd, 0, 0, load, name

    # --- judging ------------------------------------------------------------------------

    def _judge_groups(self, groups: Iterable[Group]) -> None:
        for group in groups:
            domains = dict(zip(self._board.keys, group, strict=True))
            self._groups[group] = self._coarse.judge(domains.get, alone=self._alone)

    def _concerned_nodes(self) -> set[str]:
        """Nodes in a domain with pods that the class cares about, and those in no domain of a soft constraint."""
        names: set[str] = set()
        for count in self._fine.counts():
            nodes_of = self._state.domains(count.key)
            for domain in count.values:
                names.update(nodes_of.get(domain, ()))
        for _, spread, _ in self._fine.crowds:
            names.update(self._state.outside(spread.key))
        return names

    def _mark(self, names: Iterable[str]) -> None:
        """Judge these nodes by themselves from now on; again, if they were already."""
        for name in names:
            node = self._state.nodes[name]
            self._marked.add(name)
            rank = self._rank_of[name] = self._rank(node)
            if rank is not None:
                heapq.heappush(self._ranked[self._board.group_of(node)], rank)

    def _rank(self, node: NodeState) -> Rank | None:
        order = self._board.order(node)
        if order is None:
            return None
        verdict = self._fine.judge(node.domain, alone=self._alone)
        if verdict is None:
            self._shut.add(node.name)
            return None
        self._shut.discard(node.name)
        avoided, preferred, load = order
        return (
            avoided,
            preferred - verdict.preferred,
            verdict.crowd,
            verdict.siblings,
            verdict.neighbours,
            load,
            node.name,
        )

    def _grown(self, node: NodeState) -> None:
        """A pod of the class was placed on the node: judge again what that changes, and nothing else."""
        eased = self._rules.grew(node.domain)
        if self._alone and not self._rules.alone:
            self._alone = False
            self._judge_groups(self._board.groups)
            self._mark(list(self._marked))
        elif eased.intersection(self._board.keys):
            self._judge_groups(self._board.groups)
        else:
            here = self._board.group_of(node)
            self._judge_groups([g for g in self._groups if any(map(eq, g, here))])
        if eased.intersection(self._fine_keys):
            self._mark(list(self._shut))
        concerned = {node.name} & self._marked
        for key in self._fine_keys:
            domain = node.domain(key)
            if domain is not None:
                concerned.update(self._state.domains(key)[domain])
        self._mark(concerned)
        if not concerned:
            self._board.push(node)
