"""Waiting until objects are gone.

Owns: the poll that `delete` and `drain` share. An object is told by its uid:
another one of the same name, made meanwhile by a controller, is not waited for.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from podlane.api.types import Object
from podlane.cli.resources import full_name
from podlane.errors import NotFound, PodlaneError

if TYPE_CHECKING:
    from podlane.cli.session import Session

_FIRST_PAUSE = 0.05
_LONGEST_PAUSE = 1.0


def is_gone(session: Session, obj: Object) -> bool:
    try:
        now = session.registry.get(type(obj), obj.metadata.namespace, obj.metadata.name)
    except NotFound:
        return True
    return bool(now.metadata.uid != obj.metadata.uid)


def wait_gone(
    session: Session,
    objects: Sequence[Object],
    *,
    timeout: float,
    on_gone: Callable[[Object], None] = lambda _: None,
) -> None:
    """Wait until every object is gone. `timeout` in seconds, 0 for no limit.

    Raises PodlaneError naming what is left when the time is up.
    """
    deadline = session.wall.monotonic() + timeout if timeout else None
    left = list(objects)
    pause = _FIRST_PAUSE
    while True:
        still: list[Object] = []
        for obj in left:
            if is_gone(session, obj):
                on_gone(obj)
            else:
                still.append(obj)
        left = still
        if not left:
            return
        names = ", ".join(full_name(obj) for obj in left)
        if deadline is not None and session.wall.monotonic() >= deadline:
            raise PodlaneError(f"wait for deletion of {names}: still there after {timeout:g} s")
        if session.wall.wait(session.stop, pause):
            raise PodlaneError(f"wait for deletion of {names}: stopped")
        pause = min(_LONGEST_PAUSE, pause * 1.5)
