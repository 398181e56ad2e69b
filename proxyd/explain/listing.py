"""`proxyd ruleset`: our tables as nft lists them, with the services' names.

Owns: the text. It is made of what the kernel was found to have (`Tables`) and of the
rules as ruleset.py and chains.py state them, not of nft's own listing: nft 1.0.6
aborts on some rules, and would have to be parsed to be annotated. Pure.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

from proxyd.chains import EXTERNAL_SOURCE, pick_of, rules_of
from proxyd.explain.names import Names
from proxyd.ruleset import POD_NETWORKS, SERVICE_RANGES, Skeleton, chains_of
from proxyd.tables import ADDRESSES, MAPS, PICKS, TABLE, Family, Key, MapSpec, Tables, Value, unpack_mark, unpack_target


def listing(skeleton: Skeleton, tables: Tables, names: Names, only: str = "") -> str:
    """A family's table. `only`: a service, "namespace/name": just the elements that are about it, and their chains."""
    family = skeleton.family
    lines = [f"table {family.name} {TABLE} {{"]
    shown: set[str] = set()
    for spec in MAPS.values():
        elements = sorted(tables[spec.name].items(), key=lambda each: _order(spec, each[0]))
        if only:
            elements = [each for each in elements if only in _owners(spec, tables, names, each)]
        shown.update(str(value).removeprefix("goto ") for _, value in elements if spec.kind == "verdict")
        if elements or not only:
            lines += _map(spec, family, elements, names, tables)
    if not only:
        networks = ((POD_NETWORKS, skeleton.pod_networks), (SERVICE_RANGES, skeleton.service_ranges))
        for name, within in networks:
            lines += _block(f"set {name}", f"type {family.address_type}; flags interval", within)
    for chain, hook, rules in _chains(family, tables):
        if not only or chain in shown:
            body = ([hook] if hook else []) + list(rules)
            lines += [f"  chain {chain} {{", *(f"    {line}" for line in body), "  }"]
    return "\n".join([*lines, "}"])


def _map(
    spec: MapSpec, family: Family, elements: Sequence[tuple[Key, Value]], names: Names, tables: Tables
) -> Iterator[str]:
    shown = [spec.show(family, key, value) for key, value in elements]
    width = max(map(len, shown), default=0) + 1
    lines = []
    for text, (key, value) in zip(shown, elements, strict=True):
        about = _about(spec, family, tables, names, (key, value))
        lines.append(f"{text},".ljust(width) + f"  # {about}" if about else f"{text},")
    kind = "map" if spec.is_map else "set"
    flags = "; flags interval" if spec.kind == "ranges" else ""
    return iter(_block(f"{kind} {spec.name}", f"type {spec.declaration(family)}{flags}", lines, listed=True))


def _block(head: str, kind: str, elements: Iterable[str], *, listed: bool = False) -> list[str]:
    body = [f"      {each}" if listed else f"      {each}," for each in elements]
    inside = ["    elements = {", *body, "    }"] if body else []
    return [f"  {head} {{", f"    {kind}", *inside, "  }"]


def _about(spec: MapSpec, family: Family, tables: Tables, names: Names, element: tuple[Key, Value]) -> str:
    key, value = element
    if spec.name == ADDRESSES:
        owners = sorted(_owners(spec, tables, names, element))
        return " ".join([*owners, _node(names, value)]).strip()
    about = names.element(spec, family, key)
    if spec.name == PICKS:
        target = tables[ADDRESSES].get(value) if isinstance(value, bytes) else None
        shown = names.target(unpack_target(target)) if isinstance(target, bytes) else "nobody"
        return f"{about} {shown}".strip()
    return f"{about} {_node(names, value)}".strip()


def _node(names: Names, value: Value) -> str:
    node = names.node(unpack_target(value).address) if isinstance(value, bytes) else ""
    return f"on {node}" if node else ""


def _owners(spec: MapSpec, tables: Tables, names: Names, element: tuple[Key, Value]) -> set[str]:
    """The services an element is about."""
    key, _ = element
    if spec.name == ADDRESSES:  # an id: whoever has it in a slot
        width = tables.family.width + 8
        return {names.frontend(slot[:width]).split(":")[0] for slot, number in tables[PICKS].items() if number == key}
    return {names.element(spec, tables.family, key).split(":")[0]} - {""}


def _order(spec: MapSpec, key: Key) -> tuple[bytes, int]:
    """Slots by their number, which is in the host's byte order."""
    return (key[:-4], unpack_mark(key[-4:])) if spec.key[-1] == "mark" else (key, 0)


def _chains(family: Family, tables: Tables) -> Iterator[tuple[str, str, Sequence[str]]]:
    for each in chains_of(family):
        yield each.name, each.hook, each.rules
    for chain in sorted(tables.chains, key=lambda name: (name != EXTERNAL_SOURCE, pick_of(name) or (), name)):
        yield chain, "", rules_of(chain, family.name)
