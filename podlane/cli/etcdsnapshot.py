"""`podlane etcd snapshot`: the whole store in one file, checked.

Owns: the names of dated snapshots in a folder, and which of them are kept.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

import click

from podlane.cli.command import Command, note, pass_session
from podlane.cli.options import output_option
from podlane.cli.session import Session
from podlane.errors import PodlaneError, UsageError

_MEBI = 1 << 20
_DATED = "etcd-{:%Y%m%dT%H%M%SZ}.db"
_ANY_DATED = "etcd-" + "[0-9]" * 8 + "T" + "[0-9]" * 6 + "Z.db"
_EVERY = 5.0  # seconds between lines of progress in a pipe


@click.command("snapshot", cls=Command)
@click.argument("file", metavar="FILE|FOLDER", type=click.Path(path_type=Path))
@click.option("--keep", type=click.IntRange(min=1), metavar="N", help="Of a FOLDER's snapshots keep the N newest.")
@output_option("text", "json", default="text")
@pass_session
def snapshot(session: Session, *, file: Path, keep: int | None, output: str) -> None:
    """Save the whole store in FILE, or in a FOLDER under a name with the time.

    The file is checked by its SHA-256, there whole or not at all, and its owner's alone to read: it holds all secrets
    of the cluster. The cluster goes on meanwhile.
    """
    from podlane.cli.etcd import administration

    folder = file if file.is_dir() else None
    if keep is not None and folder is None:
        raise UsageError(f"--keep: expected a folder that is there, got {file}")
    target = folder / _DATED.format(session.now()) if folder else file
    with administration(session) as admin:
        saved = admin.snapshot(target, _Progress())
    if output == "json":
        from podlane.cli.output import to_json

        click.echo(to_json({"file": str(saved.path), "sizeBytes": saved.size, "sha256": saved.digest}))
    else:
        click.echo(f"{saved.path}: {saved.size / _MEBI:.1f} MiB, sha256 {saved.digest}")
    if folder and keep:
        for old in outdated([each.name for each in folder.glob(_ANY_DATED)], keep):
            _remove(folder / old)


def outdated(names: list[str], keep: int) -> list[str]:
    """All but the newest `keep`, whose names sort by time."""
    return sorted(names)[:-keep]


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
