"""The cluster as placement sees it, kept up to date change by change.

Owns: nodes, the pods on them, the pods that wait, by shape, and every Count.
Invariant: after `update` it equals what a fresh State makes of all objects at
once, whatever came before (tests/unit/test_scheduler_placement_random.py); a
change costs what it concerns and never a pass over all nodes. What a plan
assumes (placed, held) is laid on top and taken back by the next update, unless
the objects show it by then.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Container, Iterable, Mapping
from dataclasses import replace
from typing import Any

from podlane.api.meta import is_pod_active, is_pod_finished
from podlane.api.types import Node, Pod
from scheduler.placement.counts import Carried, Count, Selection, Token, carried_by, counts, tokens_of
from scheduler.placement.nodes import NodeState, Placed
from scheduler.placement.shape import Shape, key_of, shape_of
from scheduler.placement.wants import Eligible, Namespaces
from scheduler.view import Changes

MOST_COUNTS = 20_000
"""Counts kept; beyond that all are dropped, and made anew as they are asked for."""

NOTHING: Changes[Any] = Changes({})

_JOURNAL = 50_000  # touched nodes that are remembered


class Members:
    """The pods of one shape: those placed, those waiting, and what counts them."""

    __slots__ = ("counts", "placed", "references", "shape", "tokens", "waiting")

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        self.references = 0  # pods in the objects that are of this shape, wherever they are
        self.placed: dict[str, Placed] = {}
        self.waiting: dict[str, Pod] = {}
        self.counts: list[tuple[Count, int]] = []
        self.tokens = tokens_of(shape)


class State:
    """See the module. `epoch` grows when nodes come, go, or change a label or taint."""

    def __init__(self) -> None:
        self.nodes: dict[str, NodeState] = {}
        self.waiting: dict[bytes, Members] = {}
        self.epoch = 0
        self.namespaces: Namespaces = {}
        self.carried: Counter[Carried] = Counter()
        self.priorities: Counter[int] = Counter()  # of the shapes that have pods on nodes
        self.counts_version = 0
        self._nodes: dict[str, Node] = {}
        self._alive: frozenset[str] = frozenset()
        self._members: dict[bytes, Members] = {}
        self._by_token: dict[Token, dict[bytes, Members]] = defaultdict(dict)
        self._counts: dict[tuple[str, Selection], Count] = {}
        self._counts_by_token: dict[Token, list[Count]] = defaultdict(list)
        self._where: dict[str, tuple[bytes, str]] = {}  # pod key -> shape's key, node's name ("": it waits)
        self._pods: dict[str, Pod] = {}  # those in _where, as the objects have them
        self._homeless: dict[str, set[str]] = defaultdict(set)  # pods on nodes that are not there
        self._assumed: set[str] = set()
        self._held: list[Placed] = []
        self._journal: list[str] = []
        self._journal_start = 0
        self._domains: dict[str, dict[str, list[str]]] = {}
        self._outside: dict[str, list[str]] = {}
        self._eligible: dict[tuple[str, Eligible], Counter[str]] = {}
        self._image_nodes: Counter[str] = Counter()
        self._epoch_known = -1

    # --- taking in -------------------------------------------------------------------

    def update(
        self,
        *,
        pods: Changes[Pod] = NOTHING,
        nodes: Changes[Node] = NOTHING,
        alive: Iterable[str] | None = None,
        namespaces: Namespaces | None = None,
    ) -> None:
        """Take in what changed; `alive` (nodes with a heartbeat) and `namespaces` are all there are, if given."""
        self.settle(but=pods.objects)
        if len(self._counts) > MOST_COUNTS:
            self._drop_counts()
        if namespaces is not None and namespaces != self.namespaces:
            self._set_namespaces(namespaces)
        self._update_nodes(nodes, self._alive if alive is None else frozenset(alive))
        if pods.complete:
            for key in self._where.keys() - pods.objects.keys():
                self._forget_pod(key)
        for key, pod in pods.objects.items():
            self._take_in(key, pod)

    def settle(self, but: Container[str] = ()) -> None:
        """Undo what the last plan assumed, but for pods that are taken in anyway: the objects decide."""
        for held in self._held:
            self.remove(held)
        self._held = []
        assumed, self._assumed = self._assumed, set()
        for key in assumed:
            if key not in but:
                self._take_in(key, self._pods[key])

    def _update_nodes(self, nodes: Changes[Node], alive: frozenset[str]) -> None:
        concerned = {name: self._nodes[name] for name in alive ^ self._alive if name in self._nodes}
        self._alive = alive
        gone = self._nodes.keys() - nodes.objects.keys() if nodes.complete else ()
        for name, node in (*((name, None) for name in gone), *nodes.objects.items()):
            if node is None:
                self._drop_node(name)
                concerned.pop(name, None)
            else:
                concerned[name] = node
        for name, node in concerned.items():
            self._read_node(name, node)

    def _read_node(self, name: str, node: Node) -> None:
        self._nodes[name] = node
        state = self.nodes.get(name)
        if state is None:
            state = self.nodes[name] = NodeState(name)
            state.read(node, name in self._alive)
            self._image_nodes.update(state.images.keys())
            self.epoch += 1
            for key in self._homeless.pop(name, ()):
                self._take_in(key, self._pods[key])
        else:
            changed = NodeState(name)
            changed.read(node, name in self._alive)
            if changed.facts() == state.facts():
                return
            self._image_nodes.subtract(state.images.keys())
            self._image_nodes.update(changed.images.keys())
            if (changed.labels, changed.taints) == (state.labels, state.taints):
                state.read(node, name in self._alive)
            else:
                # its pods are counted under its labels and taints
                pods = list(state.pods.values())
                for placed in pods:
                    self.remove(placed)
                state.read(node, name in self._alive)
                self.epoch += 1
                for placed in pods:
                    self.add(placed)
        self._note(name)

    def _drop_node(self, name: str) -> None:
        self._nodes.pop(name, None)
        state = self.nodes.get(name)
        if state is None:
            return
        for placed in list(state.pods.values()):
            self.remove(placed)
            self._homeless[name].add(placed.key)
        self._image_nodes.subtract(state.images.keys())
        del self.nodes[name]
        self.epoch += 1
        self._note(name)

    def _take_in(self, key: str, pod: Pod | None) -> None:
        node = "" if pod is None else pod.spec.node_name
        if pod is None or is_pod_finished(pod) or not (node or is_pod_active(pod)):
            self._forget_pod(key)
            return
        shape_key = key_of(pod)
        self._forget_pod(key, unless=(shape_key, node, pod))
        self._pods[key] = pod
        members = self._members_of(shape_key, pod)
        members.references += key not in self._where
        self._where[key] = (shape_key, node)
        if not node:
            members.waiting[key] = pod
            self.waiting[shape_key] = members
        elif node not in self.nodes:
            self._homeless[node].add(key)
        else:
            ending = pod.metadata.deletion_timestamp is not None
            known = members.placed.get(key)
            if known is None:
                self.add(Placed(key, pod, members.shape, node, ending))
            else:  # the same but for what placement does not read
                placed = Placed(key, pod, members.shape, node, ending)
                members.placed[key] = self.nodes[node].pods[key] = placed

    def _forget_pod(self, key: str, unless: tuple[bytes, str, Pod] | None = None) -> None:
        """Take it out, unless it is placed so already."""
        where = self._where.get(key)
        if where is None:
            return
        shape_key, node = where
        members = self._members[shape_key]
        placed = members.placed.get(key)
        if placed is not None:
            if unless is not None and (shape_key, placed.node) == unless[:2]:
                ending = unless[2].metadata.deletion_timestamp is not None
                if placed.ending == ending:
                    return
            self.remove(placed)
        elif node and node in self._homeless:
            self._homeless[node].discard(key)
        members.waiting.pop(key, None)
        del self._where[key], self._pods[key]
        members.references -= 1
        if not members.waiting:
            self.waiting.pop(shape_key, None)
        if not members.references and (unless is None or unless[0] != shape_key):
            self._drop_members(members)

    def _set_namespaces(self, namespaces: Namespaces) -> None:
        """Rare: who is counted by whom may change, so all counts are made anew."""
        self.namespaces = namespaces
        self._drop_counts()
        self.epoch += 1

    # --- shapes and counts ------------------------------------------------------------

    def _members_of(self, key: bytes, pod: Pod) -> Members:
        members = self._members.get(key)
        if members is None:
            members = self._members[key] = Members(shape_of(pod, key))
            for token in members.tokens:
                self._by_token[token][key] = members
                for count in self._counts_by_token.get(token, ()):
                    if weight := count.selection.weight(members.shape, self.namespaces):
                        members.counts.append((count, weight))
        return members

    def _drop_members(self, members: Members) -> None:
        key = members.shape.key
        del self._members[key]
        for token in members.tokens:
            of_token = self._by_token[token]
            del of_token[key]
            if not of_token:
                del self._by_token[token]

    def count(self, key: str, selection: Selection) -> Count:
        """The numbers of the selected pods by domain of `key`."""
        known = self._counts.get((key, selection))
        if known is not None:
            return known
        made = self._counts[key, selection] = Count(key, selection)
        self._counts_by_token[selection.token].append(made)
        for members in self._by_token.get(selection.token, {}).values():
            weight = selection.weight(members.shape, self.namespaces)
            if not weight:
                continue
            members.counts.append((made, weight))
            for placed in members.placed.values():
                if counts(selection, placed):
                    made.add(self.nodes[placed.node], weight)
        return made

    def counts(self) -> Iterable[Count]:
        """All that are kept."""
        return self._counts.values()

    def _drop_counts(self) -> None:
        self._counts.clear()
        self._counts_by_token.clear()
        self.counts_version += 1
        for members in self._members.values():
            members.counts.clear()

    # --- pods on nodes ------------------------------------------------------------------

    def add(self, placed: Placed) -> None:
        node = self.nodes[placed.node]
        node.take(placed)
        members = self._members[placed.shape.key]
        if not members.placed:
            self._carry(placed.shape, 1)
        members.placed[placed.key] = placed
        for count, weight in members.counts:
            if counts(count.selection, placed):
                count.add(node, weight)
        self._note(placed.node)

    def remove(self, placed: Placed) -> None:
        node = self.nodes[placed.node]
        node.give_back(placed)
        members = self._members[placed.shape.key]
        del members.placed[placed.key]
        if not members.placed:
            self._carry(placed.shape, -1)
        for count, weight in members.counts:
            if counts(count.selection, placed):
                count.add(node, -weight)
        self._note(placed.node)

    def assume(self, key: str, pod: Pod, members: Members, node: str) -> None:
        """Place a waiting pod, until `settle`."""
        del members.waiting[key]
        if not members.waiting:
            self.waiting.pop(members.shape.key, None)
        self._where[key] = (members.shape.key, node)
        self._assumed.add(key)
        self.add(Placed(key, pod, members.shape, node, ending=False))

    def hold(self, key: str, pod: Pod, members: Members, node: str) -> None:
        """Keep room for a waiting pod on a node, until `settle`."""
        placed = Placed(key, pod, members.shape, node, ending=False, held=True)
        self._held.append(placed)
        self.add(placed)

    def end(self, victim: Placed) -> None:
        """Show a pod as being deleted, until `settle`."""
        self.remove(victim)
        self.add(replace(victim, ending=True))
        self._assumed.add(victim.key)

    def members_of(self, pod: Pod) -> Members:
        """Those like a pod that `update` was told of. Raises KeyError for another."""
        return self._members[key_of(pod)]

    def _carry(self, shape: Shape, change: int) -> None:
        for carried in carried_by(shape):
            self.carried[carried] += change
            if self.carried[carried] == 0:
                del self.carried[carried]
        self.priorities[shape.priority] += change
        if self.priorities[shape.priority] == 0:
            del self.priorities[shape.priority]

    # --- what has changed, and what is where ---------------------------------------------

    def _note(self, name: str) -> None:
        self._journal.append(name)
        if len(self._journal) > _JOURNAL:
            self._journal_start += len(self._journal)
            self._journal = []

    @property
    def position(self) -> int:
        """Of the journal of touched nodes, for `touched_since`."""
        return self._journal_start + len(self._journal)

    def touched_since(self, position: int) -> set[str] | None:
        """The names of the nodes that changed, or whose pods did; None: too long ago."""
        if position < self._journal_start:
            return None
        return set(self._journal[position - self._journal_start :])

    def _renew_indexes(self) -> None:
        if self._epoch_known != self.epoch:
            self._epoch_known = self.epoch
            self._domains.clear()
            self._outside.clear()
            self._eligible.clear()

    def domains(self, key: str) -> Mapping[str, list[str]]:
        """The nodes of each domain of a topology key."""
        self._renew_indexes()
        known = self._domains.get(key)
        if known is None:
            known = self._domains[key] = {}
            for name, node in self.nodes.items():
                domain = node.domain(key)
                if domain is not None:
                    known.setdefault(domain, []).append(name)
        return known

    def outside(self, key: str) -> list[str]:
        """The nodes that are in no domain of a topology key."""
        self._renew_indexes()
        known = self._outside.get(key)
        if known is None:
            known = self._outside[key] = [name for name, node in self.nodes.items() if node.domain(key) is None]
        return known

    def eligible_domains(self, key: str, eligible: Eligible) -> Mapping[str, int]:
        """How many eligible nodes each domain has that has any."""
        self._renew_indexes()
        known = self._eligible.get((key, eligible))
        if known is None:
            known = self._eligible[key, eligible] = Counter(
                node.labels[key] for node in self.nodes.values() if eligible.admits(node.name, node.labels, node.taints)
            )
        return known

    def image_shares(self, images: Iterable[str]) -> dict[str, float]:
        """The share of all nodes that have each image."""
        return {name: self._image_nodes[name] / len(self.nodes) for name in images if self._image_nodes[name]}
