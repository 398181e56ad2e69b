"""`podlane label`: set, change, remove and list labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import click
import msgspec

from podlane.cli.command import Command, fail, pass_session
from podlane.cli.complete import resource_arguments
from podlane.cli.options import all_namespaces_option, dry_run_option, selector_option
from podlane.cli.session import Session
from podlane.errors import PodlaneError, UsageError

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.api.types import Object


class LabelChange(msgspec.Struct, frozen=True):
    """What the arguments `k=v` and `k-` ask for."""

    put: dict[str, str]
    remove: tuple[str, ...]

    def apply(self, labels: Mapping[str, str], *, overwrite: bool) -> dict[str, str]:
        """The new labels. Raises PodlaneError when a label has another value and may not be overwritten."""
        taken = [k for k, v in self.put.items() if labels.get(k, v) != v]
        if taken and not overwrite:
            text = ", ".join(f"{key}={labels[key]}" for key in sorted(taken))
            raise PodlaneError(f"it has {text} already; --overwrite changes it")
        return {**{k: v for k, v in labels.items() if k not in self.remove}, **self.put}


def split_arguments(arguments: Sequence[str]) -> tuple[list[str], LabelChange]:
    """Tell resource arguments from label arguments. Raises UsageError naming every bad label."""
    from podlane.api.names import label_key_error, label_value_error

    resources: list[str] = []
    put: dict[str, str] = {}
    remove: list[str] = []
    errors: list[str] = []
    for argument in arguments:
        key, equals, value = argument.partition("=")
        if equals:
            if key in put and put[key] != value:
                errors.append(f'label "{key}": given twice')
            errors += [f'label "{argument}": {e}' for e in (label_key_error(key), label_value_error(value)) if e]
            put[key] = value
        elif argument.endswith("-"):
            if error := label_key_error(argument[:-1]):
                errors.append(f'label "{argument}": {error}')
            remove.append(argument[:-1])
        elif put or remove:
            errors.append(f'argument "{argument}": expected KEY=VALUE or KEY- after the first label')
        else:
            resources.append(argument)
    errors += [f'label "{key}": expected to set it or to remove it, got both' for key in remove if key in put]
    if errors:
        raise UsageError("\n".join(errors))
    return resources, LabelChange(put, tuple(remove))


@click.command("label", cls=Command)
@click.argument(
    "arguments",
    nargs=-1,
    required=True,
    metavar="TYPE NAME… | TYPE/NAME… [KEY=VALUE…] [KEY-…]",
    shell_complete=resource_arguments,
)
@click.option("--overwrite", is_flag=True, help="Change labels that have another value.")
@click.option("--list", "list_", is_flag=True, help="Print the labels.")
@click.option("--all", "all_", is_flag=True, help="All objects of the type in the namespace.")
@selector_option
@all_namespaces_option
@dry_run_option
@pass_session
def label(
    session: Session,
    *,
    arguments: tuple[str, ...],
    overwrite: bool,
    list_: bool,
    all_: bool,
    selector: Selector | None,
    all_namespaces: bool,
    dry_run: bool,
) -> None:
    """Set labels (KEY=VALUE) or remove them (KEY-).

    \b
    podlane label pods web-1 tier=front
    podlane label rc/web tier=back old- --overwrite
    podlane label nodes --all disk=ssd
    """  # noqa: D301 - \b is click's mark for a paragraph that is not to be wrapped
    from podlane.cli.query import fetch_all
    from podlane.cli.resources import full_name, parse

    words, change = split_arguments(arguments)
    if not change.put and not change.remove and not list_:
        raise UsageError("label: missing; expected KEY=VALUE to set or KEY- to remove")
    targets = parse(words)
    if any(not target.names for target in targets) and not all_ and selector is None:
        raise UsageError("objects: missing; expected names, --selector or --all")
    if all_ and any(target.names for target in targets):
        raise UsageError("--all: expected no names with it")
    namespace = None if all_namespaces else session.namespace
    failures: list[str] = []
    for found in fetch_all(session, targets, namespace=namespace, selector=selector):
        failures += found.missing
        for obj in found.objects:
            try:
                done, now = _label_one(session, obj, change, overwrite=overwrite, dry_run=dry_run)
            except PodlaneError as error:
                failures.append(f"label {full_name(obj)}: {error}")
                continue
            if list_:
                _print_labels(obj, now)
            else:
                click.echo(f"{full_name(obj)} {done}" + (" (dry run)" if dry_run else ""))
    if failures:
        fail("\n".join(failures))


def _print_labels(obj: Object, labels: Mapping[str, str]) -> None:
    click.echo(f"Labels of {type(obj).KIND.lower()}/{obj.metadata.name}:")
    for key in sorted(labels):
        click.echo(f"  {key}={labels[key]}")


def _label_one(
    session: Session, obj: Object, change: LabelChange, *, overwrite: bool, dry_run: bool
) -> tuple[str, Mapping[str, str]]:
    """What was done, in kubectl's words, and the labels after it."""
    before = after = obj.metadata.labels

    def changed(live: Object) -> Object | None:
        nonlocal before, after
        before = live.metadata.labels
        after = change.apply(before, overwrite=overwrite)
        if after == before or dry_run:
            return None
        return msgspec.structs.replace(live, metadata=msgspec.structs.replace(live.metadata, labels=after))

    if change.put or change.remove:
        session.registry.modify(type(obj), obj.metadata.namespace, obj.metadata.name, changed)
    if after == before:
        return "not labeled", after
    return ("labeled" if change.put else "unlabeled"), after
