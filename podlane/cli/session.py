"""What one invocation of `podlane` works with: the store, the clock, the namespace.

Owns: the only way from a command to the cluster. Invariant: the store is
opened at first use and once, so that `--help`, `--dry-run` of a broken file
and completion of sub-commands need no cluster. It is also the tests' seam: a
`Session(connect=lambda options: MemoryStore(...))` handed to click as `obj`
replaces etcd and nothing else; `etcd` says where that one would be.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from threading import Event
from typing import TYPE_CHECKING, Any

from podlane.errors import UsageError

if TYPE_CHECKING:
    from podlane.runtime.clock import Clock
    from podlane.store.config import StoreConfig
    from podlane.store.interface import Store
    from podlane.store.registry import Registry

DEFAULT_NAMESPACE = "default"


@dataclass(frozen=True, slots=True)
class Given:
    """The value of a connection option, and whether it was typed (or came from the environment)."""

    value: Any
    typed: bool


Connect = Callable[[Mapping[str, Given]], "Store"]


@dataclass
class Session:
    """Made by the group for each invocation.

    `options` are the connection options that were given; setting `stop` ends
    whatever waits or watches.
    """

    connect: Connect | None = None
    etcd: StoreConfig | None = None
    clock: Clock | None = None
    options: dict[str, Given] = field(default_factory=dict)
    verbose: int = 0
    stop: Event = field(default_factory=Event)
    _store: Store | None = None
    _registry: Registry | None = None

    @property
    def namespace(self) -> str:
        """The namespace of -n, else `default`. Raises UsageError for what cannot be one."""
        given = self.options.get("namespace")
        if given is None:
            return DEFAULT_NAMESPACE
        from podlane.api.names import dns_label_error

        if error := dns_label_error(given.value):
            raise UsageError(f"--namespace: {error}")
        return str(given.value)

    @property
    def config(self) -> StoreConfig:
        """Where etcd is and who we are there. Raises UsageError when nothing says so."""
        if self.etcd is None:
            from podlane.cli.connection import resolve

            self.etcd = resolve(self.options)  # once: for a lab it moves the process
        return self.etcd

    @property
    def store(self) -> Store:
        """The open store. Raises UsageError when nothing says where etcd is, StoreUnavailable."""
        if self._store is None:
            from podlane.runtime.log import configure

            configure(level="debug" if self.verbose > 1 else "info" if self.verbose else "warning")
            self._store = self._open()
        return self._store

    def _open(self) -> Store:
        if self.connect is not None:
            return self.connect(self.options)
        from podlane.store.config import connect

        return connect(self.config)

    @property
    def registry(self) -> Registry:
        if self._registry is None:
            from podlane.store.registry import Registry

            self._registry = Registry(self.store, clock=self.wall)
        return self._registry

    @property
    def wall(self) -> Clock:
        if self.clock is None:
            from podlane.runtime.clock import SystemClock

            self.clock = SystemClock()
        return self.clock

    def now(self) -> datetime:
        """UTC, whole seconds."""
        from podlane.api.meta import utcnow_from

        return utcnow_from(self.wall.now())

    def close(self) -> None:
        if self._store is not None:
            self._store.close()
            self._store = self._registry = None
