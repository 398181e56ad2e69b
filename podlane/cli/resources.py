"""What a person may call the objects: `pods`, `po`, `rc/web`, `pods,svc`, `all`.

Owns: resource names and the grammar of resource arguments (kubectl's
`resource.Builder`). Pure. Errors are UsageError and name the argument.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from podlane.api.meta import RESOURCES, Resource, find_resource, resource_of
from podlane.api.types import Object, Pod, ReplicationController, Service
from podlane.errors import UsageError

ALL: tuple[type[Object], ...] = (Pod, ReplicationController, Service)
"""What `all` stands for: what runs, as in kubectl; not nodes, not events."""


@dataclass(frozen=True, slots=True)
class Target:
    """A kind, and the names wanted of it; no names means all of them."""

    resource: Resource
    names: tuple[str, ...] = ()


def spellings() -> list[str]:
    """Every name a kind may be called by, for completion: plurals first."""
    return [r.plural for r in RESOURCES] + ["all"] + [r.singular for r in RESOURCES]


def qualified(resource: Resource) -> str:
    """The kind as `-o name` and messages spell it: `pod`, `lease.coordination.k8s.io`."""
    group, slash, _ = resource.cls.API_VERSION.partition("/")
    return f"{resource.singular}.{group}" if slash else resource.singular


def resource_of_object(obj: Object) -> Resource:
    return resource_of(type(obj))


def full_name(obj: Object) -> str:
    """`pod/web-1`, `lease.coordination.k8s.io/node1`."""
    return f"{qualified(resource_of(type(obj)))}/{obj.metadata.name}"


def find(word: str) -> Resource:
    """The kind called `word` (any case, also with its group). Raises UsageError, with the nearest name."""
    plain, dot, group = word.lower().partition(".")
    found = find_resource(plain)
    if found is not None and (not dot or group == qualified(found).partition(".")[2]):
        return found
    import difflib

    known = [spelling for r in RESOURCES for spelling in (r.plural, r.singular, *r.short)]
    close = difflib.get_close_matches(word.lower(), known, n=1)
    hint = f'did you mean "{close[0]}"?' if close else f"known are {', '.join(r.plural for r in RESOURCES)}"
    raise UsageError(f'resource type "{word}": not known; {hint}')


def _find_all(words: str) -> list[Resource]:
    found: list[Resource] = []
    for word in words.split(","):
        if not word:
            raise UsageError(f'resource types "{words}": an empty name between commas')
        group = [resource_of(cls) for cls in ALL] if word.lower() == "all" else [find(word)]
        found.extend(entry for entry in group if entry not in found)
    return found


def parse(arguments: Sequence[str]) -> list[Target]:
    """The targets that `TYPE[,TYPE]`, `TYPE NAME…` or `TYPE/NAME…` mean, in order, each type once.

    Raises UsageError for an unknown type, a mixture of the forms, or no argument.
    """
    if not arguments:
        raise UsageError("resource type: missing; expected e.g. pods, rc/web, pods,services or all")
    if "" in arguments:
        raise UsageError("argument: expected a name, got an empty one")
    if "/" not in arguments[0]:
        slashed = next((a for a in arguments if "/" in a), None)
        if slashed is not None:
            raise UsageError(f'argument "{slashed}": TYPE/NAME cannot follow a separate TYPE "{arguments[0]}"')
        names = tuple(dict.fromkeys(arguments[1:]))
        return [Target(entry, names) for entry in _find_all(arguments[0])]
    wanted: dict[str, tuple[Resource, list[str]]] = {}
    for argument in arguments:
        word, slash, name = argument.partition("/")
        if not slash or not word or not name or "/" in name:
            raise UsageError(f'argument "{argument}": expected TYPE/NAME')
        entry = find(word)
        _, names_so_far = wanted.setdefault(entry.singular, (entry, []))
        if name not in names_so_far:
            names_so_far.append(name)
    return [Target(entry, tuple(names_of)) for entry, names_of in wanted.values()]


def parse_for(cls: type[Object], arguments: Sequence[str]) -> tuple[str, ...]:
    """The names of objects of one kind, given as `NAME…`, `TYPE NAME…` or `TYPE/NAME…`.

    Raises UsageError for another kind or when no name is given.
    """
    resource = resource_of(cls)
    if not any("/" in a for a in arguments) and (len(arguments) == 1 or find_resource(arguments[0]) is None):
        names = tuple(name for name in dict.fromkeys(arguments) if name)
    else:
        target, *others = parse(arguments)
        for other in (target, *others):
            if other.resource is not resource:
                raise UsageError(f"{other.resource.singular}: expected a {resource.singular}")
        names = target.names
    if not names:
        raise UsageError(f"{resource.singular}: a name is missing")
    return names


def parse_any(argument: str, default: type[Object]) -> Target:
    """One object given as `NAME` (of the `default` kind) or `TYPE/NAME`. Raises UsageError."""
    if "/" in argument:
        return parse([argument])[0]
    if not argument:
        raise UsageError("argument: expected a name, got an empty one")
    return Target(resource_of(default), (argument,))
