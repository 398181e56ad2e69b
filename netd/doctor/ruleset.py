"""Would this host's firewall let a VXLAN packet in? Read from nft's own listing. Pure.

Owns: walking `nft -j list ruleset` with one imagined packet. Invariant: an
answer of "drop" or "accept" is certain as far as the listing goes; whatever is
met that cannot be read (a match of iptables' without a translation, a mark, a
set that was not fetched) makes the answer "perhaps". Source: libnftables-json(5).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from ipaddress import ip_address, ip_network
from typing import Any, Literal

from podlane.api.subnets import Address

SetKey = tuple[str, str, str]
"""Family, table and name of a set or map."""

_HOOKS = ("ingress", "prerouting", "input")
_HARMLESS = frozenset({"comment"})
"""iptables' own matches that always match."""

_DROPS = frozenset({"REJECT", "DROP"})
_DEPTH = 16  # jumps, as the kernel allows


@dataclass(frozen=True, slots=True)
class Packet:
    """A VXLAN packet that arrives at this host."""

    interface: str
    source: Address
    destination: Address
    port: int

    def value(self, expression: Any) -> Any:  # noqa: PLR0911 - one a kind of expression
        """What an expression gives for this packet; None when that cannot be told."""
        match expression:
            case {"concat": parts}:
                values = [self.value(part) for part in parts]
                return None if None in values else tuple(values)
            case {"meta": {"key": key}}:
                family = "ipv4" if self.source.version == 4 else "ipv6"
                known = {"iifname": self.interface, "iif": self.interface, "l4proto": "udp", "nfproto": family}
                return known.get(key)
            case {"payload": {"protocol": "ip" | "ip6" as protocol, "field": field}}:
                if protocol != ("ip" if self.source.version == 4 else "ip6"):
                    return _NO_SUCH_HEADER
                fields = {"saddr": self.source, "daddr": self.destination, "protocol": "udp", "nexthdr": "udp"}
                return fields.get(field)
            case {"payload": {"protocol": "udp" | "th", "field": "dport"}}:
                return self.port
            case {"payload": {"base": "th", "offset": 16, "len": 16}}:
                return self.port
            case {"payload": {"protocol": "tcp" | "icmp" | "icmpv6" | "sctp" | "dccp" | "udplite"}}:
                return _NO_SUCH_HEADER
            case {"ct": {"key": "state"}}:
                return "new"
        return None


_NO_SUCH_HEADER = object()
"""The rule is about another kind of packet."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """`chain` is "family table name" of where it was decided, `rule` the rule's handle, 0 for the chain's policy."""

    kind: Literal["accept", "drop", "perhaps"]
    chain: str = ""
    rule: int = 0


@dataclass(frozen=True)
class Ruleset:
    """A parsed listing. `sets` are the elements of named sets that were fetched."""

    objects: Sequence[Mapping[str, Any]]
    sets: Mapping[SetKey, Sequence[Any]]

    def judge(self, packet: Packet) -> Verdict:
        """The first certain drop of any chain on the way in; else a possible one; else accept."""
        perhaps = Verdict("accept")
        for chain in self._entrances(packet.interface):
            verdict = _Walk(self, packet, chain["family"], chain["table"]).base(chain)
            if verdict.kind == "drop":
                return verdict
            if verdict.kind == "perhaps" and perhaps.kind == "accept":
                perhaps = verdict
        return perhaps

    def named_sets(self) -> frozenset[SetKey]:
        """The named sets that the rules of tables on the way in refer to."""
        tables = {(c["family"], c["table"]) for c in self._entrances("")}
        found = set()
        for rule in self._kind("rule"):
            table = (rule["family"], rule["table"])
            if table in tables:
                found |= {(*table, name) for name in _set_names(rule["expr"])}
        return frozenset(found)

    def rules(self, family: str, table: str, chain: str) -> Sequence[Mapping[str, Any]]:
        return self._by_chain.get((family, table, chain), ())

    @cached_property
    def _by_chain(self) -> dict[tuple[str, str, str], list[Mapping[str, Any]]]:
        found: dict[tuple[str, str, str], list[Mapping[str, Any]]] = {}
        for rule in self._kind("rule"):
            found.setdefault((rule["family"], rule["table"], rule["chain"]), []).append(rule)
        return found

    def _entrances(self, interface: str) -> Iterator[Mapping[str, Any]]:
        for chain in self._kind("chain"):
            if chain.get("hook") not in _HOOKS or chain.get("type") != "filter" or chain["family"] in {"arp", "bridge"}:
                continue
            if chain["hook"] != "ingress" or not interface or _device(chain, interface):
                yield chain

    def _kind(self, kind: str) -> Iterator[Mapping[str, Any]]:
        return (each[kind] for each in self.objects if kind in each)


def _device(chain: Mapping[str, Any], interface: str) -> bool:
    devices = chain.get("dev", [])
    return interface in ([devices] if isinstance(devices, str) else devices)


def _set_names(expression: Any) -> Iterator[str]:
    if isinstance(expression, str):
        if expression.startswith("@"):
            yield expression[1:]
    elif isinstance(expression, Mapping):
        for part in expression.values():
            yield from _set_names(part)
    elif isinstance(expression, Sequence):
        for part in expression:
            yield from _set_names(part)


class _Walk:
    """One packet through one base chain. `_doubt`: a rule that may have accepted or dropped it was passed."""

    def __init__(self, ruleset: Ruleset, packet: Packet, family: str, table: str) -> None:
        self._ruleset, self._packet = ruleset, packet
        self._family, self._table = family, table
        self._may_accept = False
        self._may_drop: Verdict | None = None

    def base(self, chain: Mapping[str, Any]) -> Verdict:
        ended = self._chain(chain["name"], 0)
        if ended is None:
            ended = Verdict(chain.get("policy", "accept"), self._name(chain["name"]))
        if ended.kind == "drop" and self._may_accept:
            return Verdict("perhaps", ended.chain, ended.rule)
        if ended.kind == "accept" and self._may_drop is not None:
            return self._may_drop
        return ended

    def _name(self, chain: str) -> str:
        return f"{self._family} {self._table} {chain}"

    def _chain(self, name: str, depth: int) -> Verdict | None:
        """What the chain says; None when the packet comes back out of it."""
        if depth > _DEPTH:
            return None
        for rule in self._ruleset.rules(self._family, self._table, name):
            certain: bool | None = True
            for statement in rule["expr"]:
                certain = _both(certain, self._matches(statement))
                if certain is False:
                    break
                verdict = self._verdict(statement, rule, certain is True, depth)
                if verdict == "return":
                    return None
                if isinstance(verdict, Verdict):
                    return verdict
        return None

    def _verdict(  # noqa: PLR0911 - one a kind of statement
        self, statement: Mapping[str, Any], rule: Mapping[str, Any], certain: bool, depth: int
    ) -> Verdict | str | None:
        """What a statement ends the walk with: a verdict, "return", or nothing."""
        match statement:
            case {"vmap": {"key": key, "data": data}}:
                chosen = self._look_up(key, data)
                return None if chosen is None else self._verdict(chosen, rule, certain, depth)
            case {"jump": {"target": chain}} | {"goto": {"target": chain}}:
                if not certain:
                    self._may_accept = True
                    self._may_drop = self._may_drop or Verdict("perhaps", self._name(chain))
                    return None
                inner = self._chain(chain, depth + 1)
                return "return" if inner is None and "goto" in statement else inner
            case {"return": _}:
                return "return" if certain else None
        kind = _terminal(statement)
        if kind is None:
            return None
        verdict = Verdict(kind, self._name(rule["chain"]), rule.get("handle", 0))
        if certain:
            return verdict
        if kind == "accept":
            self._may_accept = True
        elif self._may_drop is None:
            self._may_drop = Verdict("perhaps", verdict.chain, verdict.rule)
        return None

    def _matches(self, statement: Mapping[str, Any]) -> bool | None:
        """Whether a statement lets the rule go on; None when that cannot be told."""
        match statement:
            case {"match": {"op": op, "left": left, "right": right}}:
                return self._compare(op, self._packet.value(left), right)
            case {"xt": {"type": "match", "name": name}}:
                return True if name in _HARMLESS else None
            case {"limit": _}:
                return None
        return True

    def _compare(self, op: str, value: Any, right: Any) -> bool | None:
        if value is _NO_SUCH_HEADER:
            return False
        if value is None:
            return None
        if op in {"==", "in", "!="}:
            found = self._within(value, right)
            return found if op != "!=" or found is None else not found
        try:
            bound = _plain(right)
            return {"<": value < bound, ">": value > bound, "<=": value <= bound, ">=": value >= bound}.get(op)
        except TypeError:
            return None

    def _within(self, value: Any, right: Any) -> bool | None:  # noqa: PLR0911 - one a kind of operand
        """Whether a value is in a set, range or prefix, or equal to the one there is."""
        match right:
            case {"set": elements}:
                return _any(self._within(value, each) for each in elements)
            case {"elem": {"val": element}}:
                return self._within(value, element)
            case {"concat": parts}:
                if not isinstance(value, tuple) or len(value) != len(parts):
                    return None
                found: bool | None = True
                for own, part in zip(value, parts, strict=True):
                    found = _both(found, self._within(own, part))
                return found
            case {"prefix": {"addr": address, "len": length}}:
                return value in ip_network((address, length), strict=False)
            case {"range": [low, high]}:
                return bool(_plain(low) <= value <= _plain(high))
            case str() if right.startswith("@"):
                elements = self._ruleset.sets.get((self._family, self._table, right[1:]))
                return None if elements is None else _any(self._within(value, each) for each in elements)
            case list():
                return _any(self._within(value, each) for each in right)
            case str() | int():
                return bool(_plain(right) == value)
        return None

    def _look_up(self, key: Any, data: Any) -> Mapping[str, Any] | None:
        value = self._packet.value(key)
        match data:
            case {"set": elements} if value is not None:
                for element, verdict in elements:
                    if self._within(value, element):
                        return verdict if isinstance(verdict, Mapping) else None
                return None
        self._may_accept = True
        return None


def _terminal(statement: Mapping[str, Any]) -> Literal["accept", "drop"] | None:
    match statement:
        case {"accept": _}:
            return "accept"
        case {"drop": _} | {"reject": _}:
            return "drop"
        case {"xt": {"type": "target", "name": name}} if name in _DROPS:
            return "drop"
    return None


def _plain(value: Any) -> Any:
    if isinstance(value, str):
        try:
            return ip_address(value)
        except ValueError:
            return value
    return value


def _both(a: bool | None, b: bool | None) -> bool | None:
    if a is False or b is False:
        return False
    return None if a is None or b is None else True


def _any(found: Iterator[bool | None]) -> bool | None:
    unsure = False
    for each in found:
        if each:
            return True
        unsure = unsure or each is None
    return None if unsure else False
