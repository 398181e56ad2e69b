"""Shell completion of what is in the store.

Owns: names of objects, kinds and containers for the shell's TAB. Invariant: it
answers within about a second and never prints or fails: no cluster means no
suggestions.
"""

from __future__ import annotations

from collections.abc import Callable

import click

from podlane.cli.session import Session

DEADLINE = 1.0
"""Seconds the store may take; a person is waiting with a finger on TAB."""


def _silently(ask: Callable[[], list[str]]) -> list[str]:
    try:
        return ask()
    except Exception:  # whatever it is, there is no place to say it while a shell completes
        return []


def _names(ctx: click.Context, kind: str, incomplete: str, *, prefix: str = "") -> list[str]:
    """The names of a kind's objects, from their keys alone."""

    def ask() -> list[str]:
        from podlane.cli.resources import find
        from podlane.store.keys import parse_key, prefix_for

        session = ctx.ensure_object(Session)
        cls = find(kind).cls
        scope = session.namespace if cls.NAMESPACED else None
        listing = session.store.list(prefix_for(cls, scope), timeout=DEADLINE)
        names = (parse_key(item.key).name for item in listing.items)
        return [prefix + name for name in names if name.startswith(incomplete)]

    return _silently(ask)


def namespaces(ctx: click.Context, incomplete: str) -> list[str]:
    """Names of namespaces; `default` is always there."""
    names = {*_names(ctx, "ns", incomplete), *(["default"] if "default".startswith(incomplete) else [])}
    return sorted(names)


def _kinds(incomplete: str) -> list[str]:
    from podlane.cli.resources import spellings

    *before, last = incomplete.split(",")
    known = spellings()
    plural = [word for word in known if word.startswith(last)]
    return [",".join([*before, word]) for word in plural]


def resource_arguments(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The kinds first; then the names of the kind given, or TYPE/NAME."""
    kind, slash, name = incomplete.partition("/")
    if slash:
        return _names(ctx, kind, name, prefix=f"{kind}/")
    given = ctx.params.get(param.name or "") or ()
    if given and "/" not in given[0]:
        return _names(ctx, given[0], incomplete)
    return _kinds(incomplete)


def _of_kind(kind: str) -> Callable[[click.Context, click.Parameter, str], list[str]]:
    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
        del param
        typed, slash, name = incomplete.partition("/")
        if slash:
            return _names(ctx, typed, name, prefix=f"{typed}/")
        return _names(ctx, kind, incomplete)

    return complete


pods = _of_kind("pods")
nodes = _of_kind("nodes")


def controllers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """`rc/NAME` for scale."""
    typed, slash, name = incomplete.partition("/")
    if slash:
        return _names(ctx, typed, name, prefix=f"{typed}/")
    given = ctx.params.get(param.name or "") or ()
    if given:
        return _names(ctx, given[0], incomplete)
    return _names(ctx, "rc", incomplete.removeprefix("rc"), prefix="rc/")


def containers(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """The containers of the pod already typed."""
    del param

    def ask() -> list[str]:
        from podlane.api.types import Pod
        from podlane.cli.podtarget import container_names

        session = ctx.ensure_object(Session)
        # while -c has no value yet, click leaves the words before it unassigned
        name = str(ctx.params.get("pod") or ctx.args[0]).removeprefix("pod/")
        pod = session.registry.get(Pod, session.namespace, name)
        return [name for name in container_names(pod) if name.startswith(incomplete)]

    return _silently(ask)
