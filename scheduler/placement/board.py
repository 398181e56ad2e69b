"""The nodes in the order in which they suit pods of one profile, kept from plan to plan.

Owns: filter and score of a node by itself, for all shapes of one profile.
Invariants: `best` gives the node a full pass over all nodes would; a node is
looked at again only when it, or its pods, changed. Nodes are kept in groups
that share their domains of `keys`, so that what the pods around say of a
domain can be decided for the group.
"""

from __future__ import annotations

import heapq
from collections.abc import Container

from scheduler.placement.nodes import NodeState
from scheduler.placement.shape import Profile
from scheduler.placement.state import State

Group = tuple[str | None, ...]
"""The domains of a board's keys."""

Order = tuple[int, int, float]
"""(taints that would rather not have it, minus the preference, how full), lowest first."""

_IMAGE_DRIFT = 0.05  # of all nodes: then an image counts anew
_SPARE = 1000  # entries that may be out of date before a board is made anew


class Board:
    """`sync` it, then take `best` of a group as often as needed."""

    def __init__(self, profile: Profile, keys: tuple[str, ...]) -> None:
        self.profile = profile
        self.keys = keys
        self.groups: dict[Group, list[tuple[Order, str, int]]] = {}
        self._standing: dict[str, tuple[int, tuple[int, int, float] | None]] = {}
        self._group_of: dict[str, Group] = {}
        self._position = -1
        self._epoch = -1
        self._images: dict[str, float] = {}
        self._entries = 0

    def sync(self, state: State) -> None:
        """Look again at the nodes that changed since."""
        shares = state.image_shares(self.profile.images)
        drifted = any(
            abs(shares.get(name, 0.0) - self._images.get(name, 0.0)) > _IMAGE_DRIFT for name in self.profile.images
        )
        touched = None if drifted or self._epoch != state.epoch else state.touched_since(self._position)
        if touched is None or self._entries > 4 * len(state.nodes) + _SPARE:
            self._images = shares
            self._epoch = state.epoch
            self._rebuild(state, keep_standing=not drifted)
        else:
            for name in touched:
                node = state.nodes.get(name)
                if node is not None:
                    self.push(node)
        self._position = state.position

    def _rebuild(self, state: State, *, keep_standing: bool) -> None:
        self.groups = {}
        self._group_of = {name: tuple(map(node.labels.get, self.keys)) for name, node in state.nodes.items()}
        self._standing = {n: s for n, s in self._standing.items() if n in state.nodes} if keep_standing else {}
        for node in state.nodes.values():
            entry = self._entry(node)
            group = self.groups.setdefault(self.group_of(node), [])
            if entry is not None:
                group.append(entry)
        for heap in self.groups.values():
            heapq.heapify(heap)
        self._entries = len(state.nodes)

    def group_of(self, node: NodeState) -> Group:
        return self._group_of[node.name]

    def push(self, node: NodeState) -> None:
        """Put in the node as it is now; earlier entries of it count no more."""
        entry = self._entry(node)
        if entry is not None:
            self._entries += 1
            heapq.heappush(self.groups.setdefault(self.group_of(node), []), entry)

    def order(self, node: NodeState) -> Order | None:
        """Where it stands; None where such a pod cannot be."""
        if not node.has_room(self.profile):
            return None
        version, standing = self._standing.get(node.name, (0, None))
        if version != node.version:
            standing = None if node.refuses(self.profile) else node.standing(self.profile, self._images)
            self._standing[node.name] = node.version, standing
        return None if standing is None else (standing[0], standing[1], node.load(self.profile) + standing[2])

    def _entry(self, node: NodeState) -> tuple[Order, str, int] | None:
        order = self.order(node)
        return None if order is None else (order, node.name, node.stamp)

    def best(self, group: Group, state: State, but: Container[str], aside: list[str]) -> tuple[Order, str] | None:
        """The group's first node that is not in `but`. Those it has to move for that go to `aside`: push them later."""
        heap = self.groups[group]
        while heap:
            order, name, stamp = heap[0]
            node = state.nodes.get(name)
            if node is None or node.stamp != stamp:
                heapq.heappop(heap)
            elif name in but:
                heapq.heappop(heap)
                aside.append(name)
            else:
                return order, name
        return None
