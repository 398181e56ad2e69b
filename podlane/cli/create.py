"""`podlane create`: objects from manifests, and some kinds from the command line alone.

Owns: config maps and secrets of literals and files, namespaces, quotas,
priority classes. Words and flags are kubectl's. Invariant: all is read and
checked before anything is written.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from podlane.cli.command import Command, CommandGroup, pass_session
from podlane.cli.options import dry_run_option, filename_option, output_option
from podlane.cli.session import Session
from podlane.errors import UsageError

if TYPE_CHECKING:
    from podlane.api.types import Object

F = TypeVar("F", bound=Callable[..., Any])

_HERE = "podlane.cli.create"


def _options(command: F) -> F:
    return output_option("json", "yaml", "name")(dry_run_option(command))


@click.group(
    "create",
    cls=CommandGroup,
    invoke_without_command=True,
    lazy={
        "configmap": (f"{_HERE}:configmap", "A config map of literals and files."),
        "secret": (f"{_HERE}:secret", "A secret of literals and files."),
        "namespace": (f"{_HERE}:namespace", "A namespace."),
        "quota": (f"{_HERE}:quota", "A resource quota."),
        "priorityclass": (f"{_HERE}:priorityclass", "A priority class."),
    },
    aliases={"cm": "configmap", "ns": "namespace", "resourcequota": "quota", "pc": "priorityclass"},
)
@filename_option
@_options
@click.pass_context
def create(ctx: click.Context, filenames: tuple[str, ...], output: str | None, dry_run: bool) -> None:
    """Create the objects of the manifests, or one object of the command line. An object that exists is an error.

    \b
    podlane create -f web.yaml
    podlane create configmap web --from-file=web.conf --from-literal=colour=blue
    """  # noqa: D301 - \b is click's mark for a paragraph that is not to be wrapped
    from podlane.cli.apply import Step, check_together, in_writing_order, read, write_all

    if ctx.invoked_subcommand is not None:
        if filenames:
            raise UsageError(f"-f: expected no manifests beside {ctx.invoked_subcommand}")
        return
    session = ctx.ensure_object(Session)
    manifests = read(session, filenames)
    if errors := check_together(session, manifests):
        raise UsageError("\n".join(errors))
    steps = [Step(manifest, None, manifest.obj) for manifest in in_writing_order(manifests)]
    write_all(session, steps, output, dry_run=dry_run)


def _store(session: Session, obj: Object, output: str | None, *, dry_run: bool) -> None:
    """Check the object as if it had been read from a manifest, and create it."""
    from podlane.api.defaults import apply_defaults
    from podlane.api.manifest import Manifest
    from podlane.api.validation import validate
    from podlane.cli.apply import Step, check_together, label_of, write_all
    from podlane.errors import Invalid

    obj = apply_defaults(obj, namespace=session.namespace)
    if errors := validate(obj):
        raise Invalid(label_of(obj), errors)
    manifest = Manifest(obj, "command line", {})
    if wrong := check_together(session, [manifest]):
        raise UsageError("\n".join(wrong))
    write_all(session, [Step(manifest, None, obj)], output, dry_run=dry_run)


# --- config maps and secrets -------------------------------------------------------------------------


def _sources(command: F) -> F:
    literal = click.option(
        "--from-literal",
        "literals",
        multiple=True,
        metavar="KEY=VALUE",
        help="A key and its value; repeatable.",
    )
    file = click.option(
        "--from-file",
        "files",
        multiple=True,
        metavar="[KEY=]FILE|DIR",
        help="A file under its name or KEY, or every file of a directory; repeatable.",
    )
    return literal(file(command))


def gathered(literals: Sequence[str], files: Sequence[str]) -> dict[str, bytes]:
    """What the options say, by key. Raises UsageError for what is malformed, unreadable or there twice."""
    data: dict[str, bytes] = {}

    def add(key: str, value: bytes, option: str) -> None:
        if key in data:
            raise UsageError(f'{option}: key "{key}" is there twice')
        data[key] = value

    for text in files:
        key, equals, name = text.partition("=")
        path = Path(name if equals else text)
        if (equals and not key) or not path.name:
            raise UsageError(f'--from-file: expected FILE, KEY=FILE or DIR, got "{text}"')
        try:
            if path.is_dir():
                if equals:
                    raise UsageError(f"--from-file: expected a file for key {key}, got the directory {path}")
                for file in sorted(path.iterdir()):
                    if file.is_file():
                        add(file.name, file.read_bytes(), "--from-file")
            else:
                add(key if equals else path.name, path.read_bytes(), "--from-file")
        except OSError as error:
            raise UsageError(f"--from-file: read {error.filename or path}: {error.strerror}") from error
    for text in literals:
        key, equals, value = text.partition("=")
        if not equals or not key:
            raise UsageError(f'--from-literal: expected KEY=VALUE, got "{text}"')
        add(key, value.encode(), "--from-literal")
    return data


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _base64(data: dict[str, bytes]) -> dict[str, str]:
    return {key: base64.b64encode(value).decode() for key, value in data.items()}


@click.command("configmap", cls=Command)
@click.argument("name")
@_sources
@_options
@pass_session
def configmap(
    session: Session, *, name: str, literals: tuple[str, ...], files: tuple[str, ...], output: str | None, dry_run: bool
) -> None:
    """Create a config map. A file that is no UTF-8 text becomes binary data."""
    from podlane.api.types import ConfigMap, ObjectMeta

    data = gathered(literals, files)
    text = {key: value.decode() for key, value in data.items() if _is_text(value)}
    binary = _base64({key: value for key, value in data.items() if key not in text})
    config = ConfigMap(metadata=ObjectMeta(name=name), data=text, binary_data=binary)
    _store(session, config, output, dry_run=dry_run)


@click.group(
    "secret",
    cls=CommandGroup,
    lazy={
        "generic": (f"{_HERE}:generic", "A secret of literals and files."),
        "tls": (f"{_HERE}:tls", "A certificate and its key."),
    },
)
def secret() -> None:
    """Create a secret."""


@click.command("generic", cls=Command)
@click.argument("name")
@_sources
@click.option("--type", "kind", default="Opaque", metavar="TYPE", help="Type of the secret; default Opaque.")
@_options
@pass_session
def generic(
    session: Session,
    *,
    name: str,
    literals: tuple[str, ...],
    files: tuple[str, ...],
    kind: str,
    output: str | None,
    dry_run: bool,
) -> None:
    """Create a secret of literals and files.

    What is typed as a literal stays in the shell's history: prefer --from-file.
    """
    from podlane.api.types import ObjectMeta, Secret

    made = Secret(metadata=ObjectMeta(name=name), type=kind, data=_base64(gathered(literals, files)))
    _store(session, made, output, dry_run=dry_run)


@click.command("tls", cls=Command)
@click.argument("name")
@click.option("--cert", required=True, metavar="FILE", help="The certificate (PEM).")
@click.option("--key", required=True, metavar="FILE", help="Its private key (PEM).")
@_options
@pass_session
def tls(session: Session, *, name: str, cert: str, key: str, output: str | None, dry_run: bool) -> None:
    """Create a secret of a certificate and its key."""
    from podlane.api.types import ObjectMeta, Secret

    data = gathered((), (f"tls.crt={cert}", f"tls.key={key}"))
    made = Secret(metadata=ObjectMeta(name=name), type="kubernetes.io/tls", data=_base64(data))
    _store(session, made, output, dry_run=dry_run)


# --- kinds of one line -------------------------------------------------------------------------------


@click.command("namespace", cls=Command)
@click.argument("name")
@_options
@pass_session
def namespace(session: Session, name: str, output: str | None, dry_run: bool) -> None:
    """Create a namespace."""
    from podlane.api.types import Namespace, ObjectMeta

    _store(session, Namespace(metadata=ObjectMeta(name=name)), output, dry_run=dry_run)


@click.command("quota", cls=Command)
@click.argument("name")
@click.option("--hard", metavar="RESOURCE=QUANTITY,…", help="The limits: pods=4,requests.cpu=2,limits.memory=4Gi.")
@click.option("--scopes", metavar="SCOPE,…", help="Which pods count: BestEffort, NotBestEffort, Terminating, …")
@_options
@pass_session
def quota(
    session: Session, *, name: str, hard: str | None, scopes: str | None, output: str | None, dry_run: bool
) -> None:
    """Create a resource quota for the pods of the namespace."""
    import msgspec

    from podlane.api.types import ObjectMeta, ResourceQuota, ResourceQuotaSpec

    limits: dict[str, str] = {}
    for text in filter(None, (hard or "").split(",")):
        resource, equals, amount = text.partition("=")
        if not equals or resource in limits:
            raise UsageError(f'--hard: expected RESOURCE=QUANTITY, each resource once, got "{text}"')
        limits[resource] = amount
    try:
        spec = msgspec.convert(
            {"hard": limits, "scopes": [*filter(None, (scopes or "").split(","))]}, ResourceQuotaSpec
        )
    except msgspec.ValidationError:
        known = "BestEffort, NotBestEffort, Terminating or NotTerminating"
        raise UsageError(f'--scopes: expected {known}, got "{scopes}"') from None
    _store(session, ResourceQuota(metadata=ObjectMeta(name=name), spec=spec), output, dry_run=dry_run)


@click.command("priorityclass", cls=Command)
@click.argument("name")
@click.option("--value", type=int, default=0, help="The priority; the higher goes first.")
@click.option("--global-default", is_flag=True, help="For pods that name no class.")
@click.option("--description", default="", metavar="TEXT", help="When to use it.")
@click.option(
    "--preemption-policy",
    "policy",
    type=click.Choice(("PreemptLowerPriority", "Never")),
    default="PreemptLowerPriority",
    help="Whether its pods make room for themselves.",
)
@_options
@pass_session
def priorityclass(
    session: Session,
    *,
    name: str,
    value: int,
    global_default: bool,
    description: str,
    policy: Any,
    output: str | None,
    dry_run: bool,
) -> None:
    """Create a priority class."""
    from podlane.api.types import ObjectMeta, PriorityClass

    made = PriorityClass(
        metadata=ObjectMeta(name=name),
        value=value,
        global_default=global_default,
        description=description,
        preemption_policy=policy,
    )
    _store(session, made, output, dry_run=dry_run)
