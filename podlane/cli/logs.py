"""`podlane logs`: what containers print, from the agents that run them.

Owns: the order of several containers' output. Not followed, it is one
container after the other; followed, whole lines as they come, each with its
source when there is more than one.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from datetime import UTC, datetime
from queue import SimpleQueue
from threading import Thread
from typing import TYPE_CHECKING, Any

import click

from podlane.cli.command import Command, fail, note, pass_session
from podlane.cli.complete import containers as complete_containers
from podlane.cli.complete import pods as complete_pods
from podlane.cli.options import DURATION, selector_option
from podlane.cli.session import Session
from podlane.errors import PodlaneError, UsageError

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.cli.podtarget import ContainerTarget

_SELECTED_TAIL = 10
"""Lines of each pod when they are chosen by label and --tail is not given, as with kubectl."""


@click.command("logs", cls=Command)
@click.argument("pod", required=False, metavar="[POD | TYPE/NAME]", shell_complete=complete_pods)
@click.argument("container_word", required=False, metavar="[CONTAINER]")
@click.option("-c", "--container", metavar="NAME", shell_complete=complete_containers, help="Default: the first.")
@click.option("--all-containers", is_flag=True, help="Every container of the pod, those of its start too.")
@click.option("-f", "--follow", is_flag=True, help="Go on with what is printed from now on.")
@click.option("-p", "--previous", is_flag=True, help="Of the container before the last restart.")
@click.option("--tail", type=click.IntRange(min=-1), metavar="LINES", help="Only the last lines; -1: all.")
@click.option("--since", type=DURATION, metavar="DURATION", help="Only what is younger, e.g. 5m.")
@click.option("--since-time", metavar="TIME", help="Only what is later than this, e.g. 2026-01-02T15:04:05Z.")
@click.option("--limit-bytes", type=click.IntRange(min=0), metavar="N", help="No more than so many bytes of each.")
@click.option("--timestamps", is_flag=True, help="Put the time before each line.")
@click.option("--prefix", is_flag=True, help="Put pod and container before each line.")
@selector_option
@pass_session
def logs(
    session: Session,
    *,
    pod: str | None,
    container_word: str | None,
    container: str | None,
    all_containers: bool,
    follow: bool,
    previous: bool,
    tail: int | None,
    since: float | None,
    since_time: str | None,
    limit_bytes: int | None,
    timestamps: bool,
    prefix: bool,
    selector: Selector | None,
) -> None:
    """Print the output of a container.

    \b
    podlane logs web-1 -f --tail=20
    podlane logs rc/web -c log --since=5m
    podlane logs -l app=web --prefix
    """  # noqa: D301 - \b is click's mark for a paragraph that is not to be wrapped
    if container and container_word:
        raise UsageError("container: given twice")
    if since is not None and since_time is not None:
        raise UsageError("--since and --since-time: expected one of the two, got both")
    if follow and previous:
        raise UsageError("--previous: expected no --follow with it; that container has ended")
    if selector is not None and tail is None:
        tail = _SELECTED_TAIL
    targets = _targets(session, pod, container or container_word, selector, all_containers=all_containers)
    wanted: dict[str, Any] = {
        "follow": follow,
        "previous": previous,
        "timestamps": timestamps,
        "tail": tail if tail is not None and tail >= 0 else None,
        "since": _moment(since_time),
        "since_seconds": since,
        "limit_bytes": limit_bytes,
    }
    if follow and len(targets) > 1:
        failures = _together(session, targets, wanted)
    else:
        failures = _one_by_one(session, targets, wanted, prefix=prefix)
    if failures:
        fail("\n".join(failures))


def _targets(
    session: Session, pod: str | None, container: str | None, selector: Selector | None, *, all_containers: bool
) -> list[ContainerTarget]:
    from podlane.cli.podtarget import ContainerTarget, container_names, container_of, find_pod, find_pods

    if (pod is None) == (selector is None):
        raise UsageError("pod: expected a name or --selector")
    if all_containers and container:
        raise UsageError("--all-containers: expected no container with it")
    pods = find_pods(session, selector) if selector is not None else [find_pod(session, pod or "")]
    if not pods:
        note(f"No resources found in {session.namespace} namespace.")
    if all_containers:
        return [ContainerTarget(p, name) for p in pods for name in container_names(p)]
    return [container_of(p, container) for p in pods]


def _moment(since_time: str | None) -> float | None:
    """Unix seconds."""
    if since_time is None:
        return None
    try:
        when = datetime.fromisoformat(since_time)
    except ValueError as error:
        raise UsageError(f'--since-time: expected a time as 2026-01-02T15:04:05Z, got "{since_time}"') from error
    return (when if when.tzinfo else when.replace(tzinfo=UTC)).timestamp()


def _pieces(session: Session, target: ContainerTarget, wanted: dict[str, Any]) -> Iterator[bytes]:
    """The output in pieces as they come. Raises PodlaneError."""
    from podlane.cli.podtarget import agent_of, why_not_started
    from scheduler.agent.client import AgentError

    metadata = target.pod.metadata
    try:
        yield from agent_of(session, target.pod).logs(metadata.namespace, metadata.name, target.container, **wanted)
    except AgentError as error:
        reason = why_not_started(target)
        if error.status and reason and not wanted["previous"]:
            raise PodlaneError(
                f"logs of container {target.container} of pod {metadata.name}: it has not started: {reason}"
            ) from error
        raise PodlaneError(f"logs of pod {metadata.name}: {error}") from error


def _lines(pieces: Iterator[bytes]) -> Iterator[bytes]:
    """Whole lines; the last one gets its newline if it has none."""
    rest = b""
    for piece in pieces:
        *whole, rest = (rest + piece).split(b"\n")
        for line in whole:
            yield line + b"\n"
    if rest:
        yield rest + b"\n"


def _write(data: bytes) -> None:
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()


def _one_by_one(
    session: Session, targets: Sequence[ContainerTarget], wanted: dict[str, Any], *, prefix: bool
) -> list[str]:
    failures: list[str] = []
    for target in targets:
        mark = f"{target.prefix} ".encode() if prefix else b""
        pieces = _pieces(session, target, wanted)
        try:
            for data in _lines(pieces) if prefix else pieces:
                _write(mark + data)
        except PodlaneError as error:
            failures.append(str(error))
    return failures


def _together(session: Session, targets: Sequence[ContainerTarget], wanted: dict[str, Any]) -> list[str]:
    """Follow several at once; always with their source, or nobody could tell the lines apart."""
    lines: SimpleQueue[bytes | PodlaneError | None] = SimpleQueue()

    def read(target: ContainerTarget) -> None:
        mark = f"{target.prefix} ".encode()
        try:
            for line in _lines(_pieces(session, target, wanted)):
                lines.put(mark + line)
        except PodlaneError as error:
            lines.put(error)
        finally:
            lines.put(None)

    for target in targets:
        Thread(target=read, args=(target,), daemon=True, name=f"logs {target.prefix}").start()
    failures: list[str] = []
    running = len(targets)
    while running:
        item = lines.get()
        if item is None:
            running -= 1
        elif isinstance(item, PodlaneError):
            failures.append(str(item))
        else:
            _write(item)
    return failures
