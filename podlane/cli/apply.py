"""`podlane apply`: from manifests to stored objects; `create` (create.py) takes the same steps.

Owns: the order of events. Invariant: every manifest of every file is read,
checked and compared with what is stored before the first write, so bad input
changes nothing. Namespaces are written first, the rest as given; a write that
fails does not keep the independent others from being tried.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click
import msgspec

from podlane.cli.command import Command, fail, pass_session, warn
from podlane.cli.options import dry_run_option, filename_option, load_manifests, output_option
from podlane.cli.session import DEFAULT_NAMESPACE, Session
from podlane.errors import FieldError, Invalid, NotFound, PodlaneError, UsageError

if TYPE_CHECKING:
    from podlane.api.manifest import Manifest
    from podlane.api.types import Object


@dataclass(frozen=True, slots=True)
class Step:
    """What is to become of one manifest. `live` is None for an object to be created."""

    manifest: Manifest
    live: Object | None
    wanted: Object

    @property
    def verb(self) -> str:
        if self.live is None:
            return "created"
        return "unchanged" if self.live == self.wanted else "configured"

    def changes(self) -> list[str]:
        """The fields that would change, for --dry-run."""
        from podlane.cli.merge import LAST_APPLIED, differences

        if self.live is None:
            return []
        lines = differences(*_compared(self.live, self.wanted))
        return [line for line in lines if LAST_APPLIED not in line]


def _compared(live: Object, wanted: Object) -> tuple[dict[str, Any], dict[str, Any]]:
    """Both as they are compared for the eye: of a secret's values only whether they change."""
    from podlane.api.codec import to_builtins
    from podlane.api.types import Secret

    before, after = to_builtins(live), to_builtins(wanted)
    if isinstance(live, Secret) and isinstance(wanted, Secret):
        same = {key for key, text in live.data.items() if wanted.data.get(key) == text}
        before["data"] = {key: "***" if key in same else "*** (before)" for key in live.data}
        after["data"] = {key: "***" if key in same else "*** (after)" for key in wanted.data}
    return before, after


def desired(manifest: Manifest, live: Object | None) -> tuple[Object, list[FieldError]]:
    """The object that a manifest makes of `live`, and what forbids it. Pure."""
    from podlane.api.codec import to_builtins
    from podlane.api.defaults import apply_defaults, inherit
    from podlane.api.validation import validate, validate_update
    from podlane.cli.merge import LAST_APPLIED, configuration, from_annotation, merge, to_annotation

    config = configuration(manifest.raw)
    config["metadata"]["name"] = manifest.obj.metadata.name
    if type(manifest.obj).NAMESPACED:
        config["metadata"]["namespace"] = manifest.obj.metadata.namespace
    applied = to_annotation(config)
    if live is None:
        wanted = manifest.obj
    else:
        current = to_builtins(live)
        last = from_annotation(live.metadata.annotations.get(LAST_APPLIED))
        try:
            wanted = msgspec.convert(merge(current, last, config), type(live))
        except msgspec.ValidationError as error:
            return live, [FieldError("", f"merge with the stored object: {error}")]
        wanted = inherit(live, apply_defaults(wanted))
    annotations = {**wanted.metadata.annotations, LAST_APPLIED: applied}
    wanted = msgspec.structs.replace(wanted, metadata=msgspec.structs.replace(wanted.metadata, annotations=annotations))
    if live is None:
        return wanted, []
    return wanted, [*validate(wanted), *validate_update(live, wanted)]


def in_writing_order(manifests: Sequence[Manifest]) -> list[Manifest]:
    """Namespaces first, the rest as given."""
    from podlane.api.types import Namespace

    return sorted(manifests, key=lambda m: not isinstance(m.obj, Namespace))


def label_of(obj: Object) -> str:
    """`ReplicationController/web`, as errors name an object."""
    return f"{type(obj).KIND}/{obj.metadata.name or obj.metadata.generate_name}"


def check_together(session: Session, manifests: Sequence[Manifest]) -> list[str]:
    """What is wrong with the manifests though each is right: objects named twice, namespaces that are not there."""
    from podlane.api.meta import key_of

    first: dict[tuple[str, str, str], Manifest] = {}
    errors: list[str] = []
    for manifest in manifests:
        if manifest.obj.metadata.name:
            known = first.setdefault(key_of(manifest.obj), manifest)
            if known is not manifest:
                errors.append(f"{manifest.source} {label_of(manifest.obj)}: {known.source} has it too")
    return errors + _check_namespaces(session, manifests)


def _check_namespaces(session: Session, manifests: Sequence[Manifest]) -> list[str]:
    from podlane.api.types import Namespace

    known = {m.obj.metadata.name for m in manifests if isinstance(m.obj, Namespace)} | {DEFAULT_NAMESPACE}
    errors: list[str] = []
    explicit = "namespace" in session.options
    for manifest in manifests:
        obj = manifest.obj
        namespace = obj.metadata.namespace
        if not type(obj).NAMESPACED:
            continue
        where = f"{manifest.source} {label_of(obj)}: metadata.namespace"
        if explicit and namespace != session.namespace:
            errors.append(f'{where}: it says "{namespace}", but -n says "{session.namespace}"')
        elif namespace not in known:
            try:
                session.registry.get(Namespace, "", namespace)
                known.add(namespace)
            except NotFound:
                errors.append(f'{where}: namespace "{namespace}" not found')
    return errors


def plan(session: Session, manifests: Sequence[Manifest]) -> list[Step]:
    """Compare all manifests with the store. Raises UsageError with everything that forbids the change."""
    errors = check_together(session, manifests)
    steps: list[Step] = []
    for manifest in in_writing_order(manifests):
        obj = manifest.obj
        where = f"{manifest.source} {label_of(obj)}"
        if not obj.metadata.name:
            errors.append(f"{where}: metadata.generateName: apply needs a name; use create")
            continue
        try:
            live: Object | None = session.registry.get(type(obj), obj.metadata.namespace, obj.metadata.name)
        except NotFound:
            live = None
        wanted, wrong = desired(manifest, live)
        errors.extend(f"{where}: {error}" for error in wrong)
        steps.append(Step(manifest, live, wanted))
    if errors:
        raise UsageError("\n".join(errors))
    return steps


def carry_out(session: Session, step: Step) -> Step:
    """Write one step; returns what was really done. Raises PodlaneError."""
    registry = session.registry
    if step.live is None:
        return Step(step.manifest, None, registry.create(step.wanted))
    before = step.live
    last = step

    def change(live: Object) -> Object | None:
        nonlocal last
        wanted, wrong = desired(step.manifest, live)
        if wrong:
            raise Invalid(f"{step.manifest.source} {label_of(live)}", wrong)
        last = Step(step.manifest, live, wanted)
        return None if wanted == live else wanted

    registry.modify(type(before), before.metadata.namespace, before.metadata.name, change)
    return last


def report(step: Step, output: str | None, *, dry_run: bool) -> None:
    from podlane.cli.output import OBJECT_FORMATS, print_objects
    from podlane.cli.resources import full_name

    if output in OBJECT_FORMATS:
        print_objects([step.wanted], output, single=True)
        return
    click.echo(f"{full_name(step.wanted)} {step.verb}" + (" (dry run)" if dry_run else ""))
    if dry_run:
        for line in step.changes():
            click.echo(f"  {line}")


def write_all(session: Session, steps: Sequence[Step], output: str | None, *, dry_run: bool) -> None:
    """Carry the steps out, each on its own; ends with exit code 1 if any failed."""
    failures: list[str] = []
    for step in steps:
        try:
            report(step if dry_run else carry_out(session, step), output, dry_run=dry_run)
        except PodlaneError as error:
            failures.append(str(error))
    if failures:
        fail("\n".join(failures))


def read(session: Session, filenames: tuple[str, ...]) -> list[Manifest]:
    if not filenames:
        raise UsageError("-f: missing; expected a manifest file, a directory or - for standard input")
    return load_manifests(filenames, namespace=session.namespace)


@click.command("apply", cls=Command)
@filename_option
@output_option("json", "yaml", "name")
@dry_run_option
@pass_session
def apply(session: Session, filenames: tuple[str, ...], output: str | None, dry_run: bool) -> None:
    """Create the objects of the manifests, or change those that exist to what the manifests say.

    Fields a manifest does not set keep their values; fields it set at the last
    apply and no longer sets are removed. All files are checked first: if
    anything is wrong, nothing is changed.
    """
    from podlane.cli.merge import LAST_APPLIED
    from podlane.cli.resources import full_name

    steps = plan(session, read(session, filenames))
    warn(
        [
            f"{full_name(step.live)} was not made by apply; fields the manifest does not set are kept"
            for step in steps
            if step.live is not None and LAST_APPLIED not in step.live.metadata.annotations
        ]
    )
    write_all(session, steps, output, dry_run=dry_run)
