"""`podlane etcd snapshot`: the whole store in one file, checked.

Owns: the options, and that nothing old goes before the new one is there, whole.
"""

from __future__ import annotations

import os
import sys
import time
from pathlib import Path

import click

from podlane.cli.command import Command, note, pass_session
from podlane.cli.options import output_option
from podlane.cli.session import Session
from podlane.errors import PodlaneError, UsageError

_MEBI = 1 << 20
_EVERY = 5.0  # seconds between lines of progress in a pipe


@click.command("snapshot", cls=Command)
@click.argument("file", metavar="FILE|FOLDER", type=click.Path(path_type=Path))
@click.option(
    "--keep", type=click.IntRange(min=1), metavar="N", help="Of this server's snapshots in FOLDER keep the N newest."
)
@click.option(
    "--name",
    default=lambda: os.uname().nodename,
    show_default="the host's name",
    metavar="NAME",
    help="Server that a file in FOLDER is named after.",
)
@output_option("text", "json", default="text")
@pass_session
def snapshot(session: Session, *, file: Path, keep: int | None, name: str, output: str) -> None:
    """Save the whole store in FILE, or in a FOLDER under a name with server and time.

    The file is checked by its SHA-256, there whole or not at all, and its owner's alone to read: it holds all secrets
    of the cluster. The cluster goes on meanwhile.
    """
    from podlane.api.names import dns_subdomain_error
    from podlane.cli.etcd import administration
    from podlane.store import snapshots

    folder = file if file.is_dir() else None
    if keep is not None and folder is None:
        raise UsageError(f"--keep: expected a folder that is there, got {file}")
    if folder and (error := dns_subdomain_error(name)):
        raise UsageError(f"--name: {error}")
    target = folder / snapshots.name_of(name, session.now()) if folder else file
    with administration(session) as admin:
        saved = admin.snapshot(target, _Progress())
    if output == "json":
        from podlane.cli.output import to_json

        click.echo(to_json({"file": str(saved.path), "sizeBytes": saved.size, "sha256": saved.digest}))
    else:
        click.echo(f"{saved.path}: {saved.size / _MEBI:.1f} MiB, sha256 {saved.digest}")
    if folder and keep:
        for old in snapshots.outdated(snapshots.dated(folder), name, keep, session.now()):
            _remove(old.path)


def _remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise PodlaneError(f"remove {path}: {error.strerror}") from error
    note(f"removed {path}")


class _Progress:
    """A line that is written over on a terminal, a line now and then in a pipe."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._next = time.monotonic() + (0.0 if self._terminal else _EVERY)

    def __call__(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now < self._next and not (self._terminal and done == total):
            return
        self._next = now + (0.2 if self._terminal else _EVERY)
        text = f"{done / _MEBI:.1f} of {total / _MEBI:.1f} MiB"
        if self._terminal:
            click.echo(f"\r{text}{'' if done < total else chr(10)}", nl=False, err=True)
        else:
            note(text)
