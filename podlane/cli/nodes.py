"""`podlane cordon`, `uncordon` and `taint`: what may be placed on nodes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

import click
import msgspec

from podlane.cli.command import Command, fail, pass_session
from podlane.cli.complete import nodes as complete_nodes
from podlane.cli.options import dry_run_option, selector_option
from podlane.cli.session import Session
from podlane.errors import NotFound, PodlaneError, UsageError

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.api.types import Node, Taint, TaintEffect

EFFECTS = ("NoSchedule", "PreferNoSchedule", "NoExecute")

nodes_argument = click.argument("names", nargs=-1, metavar="NODE…", shell_complete=complete_nodes)


def find(session: Session, names: Sequence[str], selector: Selector | None, *, all_: bool = False) -> list[Node]:
    """The nodes by name or by label. Raises NotFound naming all that are missing."""
    from podlane.api.meta import resource_of
    from podlane.api.types import Node
    from podlane.cli.query import fetch
    from podlane.cli.resources import Target, parse_for

    if not all_ and bool(names) == (selector is not None):
        raise UsageError("nodes: expected names or --selector")
    target = Target(resource_of(Node), parse_for(Node, names) if names else ())
    found = fetch(session, target, namespace="", selector=selector)
    if found.missing:
        raise NotFound("\n".join(found.missing))
    return [obj for obj in found.objects if isinstance(obj, Node)]


def set_unschedulable(session: Session, node: Node, unschedulable: bool, *, dry_run: bool) -> None:
    from podlane.api.types import Node

    word = "cordoned" if unschedulable else "uncordoned"
    name = node.metadata.name
    if node.spec.unschedulable == unschedulable:
        click.echo(f"node/{name} already {word}")
        return

    def change(live: Node) -> Node | None:
        if live.spec.unschedulable == unschedulable:
            return None
        spec = msgspec.structs.replace(live.spec, unschedulable=unschedulable)
        return msgspec.structs.replace(live, spec=spec)

    if not dry_run:
        session.registry.modify(Node, "", name, change)
    click.echo(f"node/{name} {word}" + (" (dry run)" if dry_run else ""))


@click.command("cordon", cls=Command)
@nodes_argument
@selector_option
@dry_run_option
@pass_session
def cordon(session: Session, names: tuple[str, ...], selector: Selector | None, dry_run: bool) -> None:
    """Mark nodes unschedulable: their pods go on, new ones are placed elsewhere."""
    for node in find(session, names, selector):
        set_unschedulable(session, node, True, dry_run=dry_run)


@click.command("uncordon", cls=Command)
@nodes_argument
@selector_option
@dry_run_option
@pass_session
def uncordon(session: Session, names: tuple[str, ...], selector: Selector | None, dry_run: bool) -> None:
    """Mark nodes schedulable again."""
    for node in find(session, names, selector):
        set_unschedulable(session, node, False, dry_run=dry_run)


@dataclass(frozen=True, slots=True)
class TaintChange:
    """What the arguments `k=v:Effect` and `k[:Effect]-` ask for; removals are (key, effect), "" for every effect."""

    put: tuple[Taint, ...]
    remove: tuple[tuple[str, str], ...]

    def apply(self, taints: Sequence[Taint], *, overwrite: bool) -> tuple[Taint, ...]:
        """The new taints. Raises PodlaneError for one that is there already or that is to go and is not there."""
        from podlane.api.taints import same, spelled

        absent = [
            f"{key}:{effect}" if effect else key
            for key, effect in self.remove
            if not any(taint.key == key and effect in {"", taint.effect} for taint in taints)
        ]
        if absent:
            raise PodlaneError(f"it has no taint {', '.join(absent)}")
        taken = [spelled(old) for old in taints if any(same(old, new) and old.value != new.value for new in self.put)]
        if taken and not overwrite:
            raise PodlaneError(f"it has {', '.join(taken)} already; --overwrite changes it")
        kept = tuple(
            old
            for old in taints
            if not any(key == old.key and effect in {"", old.effect} for key, effect in self.remove)
            and not any(same(old, new) and old.value != new.value for new in self.put)
        )
        return (*kept, *(new for new in self.put if not any(same(old, new) for old in kept)))


def split_taints(arguments: Sequence[str]) -> tuple[list[str], TaintChange]:
    """Tell nodes from taints. Raises UsageError naming every bad taint."""
    from podlane.api.names import label_key_error, label_value_error
    from podlane.api.types import Taint

    words: list[str] = []
    put: list[Taint] = []
    remove: list[tuple[str, str]] = []
    errors: list[str] = []
    for argument in arguments:
        spec, colon, effect = argument.removesuffix("-").partition(":")
        key, equals, value = spec.partition("=")
        going = argument.endswith("-")
        if not (colon or equals or going):
            if put or remove:
                errors.append(f'argument "{argument}": expected KEY=VALUE:EFFECT or KEY:EFFECT- after the first taint')
            words.append(argument)
            continue
        wrong = [e for e in (label_key_error(key), label_value_error(value)) if e]
        if (colon or not going) and effect not in EFFECTS:
            wrong.append(f"expected an effect of {', '.join(EFFECTS)}" + (f', got "{effect}"' if effect else ""))
        errors += [f'taint "{argument}": {e}' for e in wrong]
        if going:
            remove.append((key, effect))
        elif not wrong:
            put.append(Taint(key=key, value=value, effect=cast("TaintEffect", effect)))
    pairs = [(taint.key, str(taint.effect)) for taint in put]
    errors += [f'taint "{key}:{effect}": given twice' for key, effect in pairs if pairs.count((key, effect)) > 1]
    errors += [
        f'taint "{key}": expected to set it or to remove it, got both'
        for key, effect in remove
        if any(key == k and effect in {"", e} for k, e in pairs)
    ]
    if errors:
        raise UsageError("\n".join(dict.fromkeys(errors)))
    return words, TaintChange(tuple(put), tuple(remove))


@click.command("taint", cls=Command)
@click.argument(
    "arguments",
    nargs=-1,
    required=True,
    metavar="nodes NAME… [KEY[=VALUE]:EFFECT…] [KEY[:EFFECT]-…]",
    shell_complete=complete_nodes,
)
@click.option("--overwrite", is_flag=True, help="Change taints that have another value.")
@click.option("--all", "all_", is_flag=True, help="All nodes.")
@selector_option
@dry_run_option
@pass_session
def taint(
    session: Session,
    *,
    arguments: tuple[str, ...],
    overwrite: bool,
    all_: bool,
    selector: Selector | None,
    dry_run: bool,
) -> None:
    """Set taints (KEY=VALUE:EFFECT) on nodes or remove them (KEY:EFFECT-, KEY-).

    NoSchedule keeps pods that do not tolerate it from being placed there,
    PreferNoSchedule does if there is another node, NoExecute ends those that
    are there too.

    \b
    podlane taint nodes node1 dedicated=db:NoExecute
    podlane taint nodes --all maintenance:NoSchedule-
    """  # noqa: D301 - \b is click's mark for a paragraph that is not to be wrapped
    words, change = split_taints(arguments)
    if not change.put and not change.remove:
        raise UsageError("taint: missing; expected KEY=VALUE:EFFECT to set or KEY:EFFECT- to remove")
    names = words[1:] if words and words[0] in {"nodes", "node", "no"} else words
    if all_ and (names or selector is not None):
        raise UsageError("--all: expected no names and no --selector with it")
    failures: list[str] = []
    for node in find(session, names, selector, all_=all_):
        name = node.metadata.name
        try:
            changed = _taint_one(session, node, change, overwrite=overwrite, dry_run=dry_run)
        except PodlaneError as error:
            failures.append(f"taint node/{name}: {error}")
            continue
        done = "not changed" if not changed else "modified" if change.put and change.remove else ""
        done = done or ("tainted" if change.put else "untainted")
        click.echo(f"node/{name} {done}" + (" (dry run)" if dry_run else ""))
    if failures:
        fail("\n".join(failures))


def _taint_one(session: Session, node: Node, change: TaintChange, *, overwrite: bool, dry_run: bool) -> bool:
    from podlane.api.types import Node

    def changed(live: Node) -> Node | None:
        taints = change.apply(live.spec.taints, overwrite=overwrite)
        return msgspec.structs.replace(live, spec=msgspec.structs.replace(live.spec, taints=taints))

    if dry_run:
        return changed(node) != node
    return session.registry.modify(Node, "", node.metadata.name, changed) != node
