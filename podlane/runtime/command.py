"""Other programs: run one, with a deadline, and say clearly what went wrong.

Owns: `run`, the only user of subprocess outside the lab. Invariant: when `run`
returns or raises, the child and all of its process group are gone. The child gets a
process group of its own, so that a Ctrl-C for us does not hit a half-done
`nft` and a deadline kills grandchildren too; the C locale, so that messages
can be recognised; and no terminal on standard input.
"""

from __future__ import annotations

import os
import shlex
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass

from podlane.errors import PodlaneError

_LAST_LINES = 5
_LAST_WORDS = 1.0  # seconds to read what a killed command had said
_SHOWN_ARGUMENTS = 200


@dataclass(frozen=True, slots=True)
class Completed:
    """What a finished command said. `returncode` is negative when a signal ended it."""

    stdout: str
    stderr: str
    returncode: int


class CommandError(PodlaneError):
    """A command failed; the message ends with the last lines of its standard error.

    `returncode` is None when it did not start or was killed at its deadline.
    """

    def __init__(self, argv: Sequence[str], cause: str, *, returncode: int | None = None, stderr: str = "") -> None:
        self.argv = tuple(argv)
        self.returncode = returncode
        self.stderr = stderr
        super().__init__(f"run {_shown(argv)}: {cause}")


class CommandTimeout(CommandError):
    """A command did not finish before its deadline and was killed."""


def run(
    argv: Sequence[str],
    *,
    input: str | bytes | None = None,  # noqa: A002 - as in subprocess
    timeout: float,
    check: bool = True,
) -> Completed:
    """Run a program and wait at most `timeout` seconds.

    Output is decoded as UTF-8 with undecodable bytes kept as surrogates.
    Raises CommandError when it cannot be started, or (with `check`) exits
    with anything but 0, and CommandTimeout.
    """
    try:
        child = subprocess.Popen(
            list(argv),
            stdin=subprocess.DEVNULL if input is None else subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env={**os.environ, "LC_ALL": "C.UTF-8"},
            start_new_session=True,
        )
    except FileNotFoundError as error:
        raise CommandError(argv, "command not found") from error
    except OSError as error:
        raise CommandError(argv, error.strerror or str(error)) from error
    data = input.encode() if isinstance(input, str) else input
    try:
        out, err = child.communicate(data, timeout=timeout)
    except subprocess.TimeoutExpired as error:
        said = _kill(child)
        raise CommandTimeout(argv, _cause(f"not finished after {timeout:g} s", said), stderr=said) from error
    except BaseException:  # also when interrupted: leave no child behind, then go on failing
        _kill(child)
        raise
    stdout, stderr = _text(out), _text(err)
    if check and child.returncode != 0:
        code = child.returncode
        how = f"exit {code}" if code > 0 else f"ended by signal {signal.Signals(-code).name}"
        raise CommandError(argv, _cause(how, stderr), returncode=code, stderr=stderr)
    return Completed(stdout, stderr, child.returncode)


def _kill(child: subprocess.Popen[bytes]) -> str:
    """Kill the whole process group and return what it had said on standard error."""
    with suppress(ProcessLookupError):
        os.killpg(child.pid, signal.SIGKILL)
    try:
        _, err = child.communicate(timeout=_LAST_WORDS)
    except subprocess.TimeoutExpired:
        # A grandchild that left the group holds the pipes: do not wait for it.
        for pipe in (child.stdin, child.stdout, child.stderr):
            if pipe is not None:
                pipe.close()
        return ""
    return _text(err)


def _text(data: bytes) -> str:
    return data.decode("utf-8", "surrogateescape")


def _cause(what: str, stderr: str) -> str:
    lines = [line.strip() for line in stderr.splitlines() if line.strip()]
    return f"{what}: {' | '.join(lines[-_LAST_LINES:])}" if lines else what


def _shown(argv: Sequence[str]) -> str:
    text = shlex.join(argv)
    return text if len(text) <= _SHOWN_ARGUMENTS else text[: _SHOWN_ARGUMENTS - 1] + "…"
