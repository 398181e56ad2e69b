"""The config maps and secrets that this node's pods name, and nothing else of their kind.

Owns: which objects are followed, and what was last known of them. Invariants:
an object is read only while a pod bound here names it, key by key (a stolen
node holds no more than what its pods were given, and etcd's roles can say so);
`look` never waits; what was known stays known while the store is away; nothing
is written to disk here. One watch stream for the whole node, however many
objects: `run` reads them all, follows them, and reads them again when the set
changes, the stream breaks, or every RESYNC seconds, for a watch does not notice
a store that was exchanged. Source: the kubelet's watch-based manager
(pkg/kubelet/util/manager), which has a watch for each object.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from podlane.api.codec import DecodeError, decode
from podlane.api.types import ConfigMap, Container, Pod, Secret
from podlane.errors import PodlaneError
from podlane.runtime.clock import Clock
from podlane.runtime.log import Repetition, get_logger
from podlane.store import keys
from podlane.store.interface import Get, KeyValue, Store, Watch

RESYNC = 300.0
PAUSES = (0.2, 5.0)
"""Seconds between attempts while the store is away: first and longest; doubling between."""
_READS = 32  # in one transaction: an object may have a megabyte
_POLL = 1.0

Followed = ConfigMap | Secret


class Ref(NamedTuple):
    """Names a config map or a secret. As text it is what the kubelet calls it."""

    kind: type[ConfigMap] | type[Secret]
    namespace: str
    name: str

    def __str__(self) -> str:
        return f'{self.kind.KIND.lower()} "{self.name}"'

    @property
    def key(self) -> str:
        return keys.key_for(self.kind, self.namespace, self.name)


@dataclass(frozen=True, slots=True)
class Services:
    """A namespace's services as variables; `master` are those of `kubernetes` in `default`, which every pod gets."""

    links: Mapping[str, str] = field(default_factory=dict)
    master: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Known:
    """What is known of the store's objects. Pure.

    An object that is not in `objects` was not read yet, None is not there.
    `services` by namespace, if they are as new as they must be; None where
    service variables are not wanted at all.
    """

    objects: Mapping[Ref, Followed | None] = field(default_factory=dict)
    services: Mapping[str, Services] | None = None


def refs_of(pod: Pod) -> frozenset[Ref]:
    """Every config map and secret a pod names."""
    namespace = pod.metadata.namespace
    spec = pod.spec
    found = set(_of_volumes(pod))
    for container in (*spec.init_containers, *spec.containers):
        found.update(Ref(kind, namespace, name) for kind, name in _of_environment(container))
    return frozenset(found)


def volume_refs(pod: Pod) -> tuple[Ref, ...]:
    """Those of its volumes, in their order."""
    return tuple(_of_volumes(pod))


def _of_volumes(pod: Pod) -> Iterator[Ref]:
    for volume in pod.spec.volumes:
        if volume.config_map is not None:
            yield Ref(ConfigMap, pod.metadata.namespace, volume.config_map.name)
        if volume.secret is not None:
            yield Ref(Secret, pod.metadata.namespace, volume.secret.secret_name)


def _of_environment(container: Container) -> Iterator[tuple[type[ConfigMap] | type[Secret], str]]:
    for source in container.env_from:
        if source.config_map_ref is not None:
            yield ConfigMap, source.config_map_ref.name
        if source.secret_ref is not None:
            yield Secret, source.secret_ref.name
    for value in (variable.value_from for variable in container.env):
        if value is not None and value.config_map_key_ref is not None:
            yield ConfigMap, value.config_map_key_ref.name
        if value is not None and value.secret_key_ref is not None:
            yield Secret, value.secret_key_ref.name


class References:
    """`on_change` is called when something known changed. `run` is the body of one thread."""

    def __init__(self, store: Store, on_change: Callable[[], None], clock: Clock) -> None:
        self._store = store
        self._on_change = on_change
        self._clock = clock
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._wanted: frozenset[Ref] = frozenset()
        self._objects: dict[Ref, Followed | None] = {}
        self._revisions: dict[Ref, int] = {}
        self._watch: Watch | None = None
        self._repetition = Repetition()
        self._log = get_logger("references")

    def look(self, pods: Iterable[Pod]) -> dict[Ref, Followed | None]:
        """What is known of the objects these pods name, which are followed from now on; all others are forgotten."""
        wanted = frozenset(ref for pod in pods for ref in refs_of(pod))
        with self._lock:
            changed, self._wanted = wanted != self._wanted, wanted
            if changed:
                self._objects = {ref: obj for ref, obj in self._objects.items() if ref in wanted}
                self._revisions = {ref: at for ref, at in self._revisions.items() if ref in wanted}
                self._interrupt()
            return dict(self._objects)

    def run(self, stop: threading.Event) -> None:
        """Follow what is wanted until `stop`."""
        threading.Thread(target=self._end, args=(stop,), name="references-stop", daemon=True).start()
        pause = PAUSES[0]
        while not stop.is_set():
            self._clock.wait(self._wake, RESYNC)
            self._wake.clear()
            wanted = self._wanted
            try:
                if wanted and not stop.is_set():
                    self._follow(wanted, stop)
                    self._wake.set()  # read again: the set changed, or it is time to
                pause = PAUSES[0]
            except PodlaneError as error:
                if wanted == self._wanted and not stop.is_set():  # else we have cut the stream ourselves
                    news = self._repetition.is_news(str(error), self._clock.monotonic())
                    (self._log.warning if news else self._log.debug)(
                        "references lost", error=str(error), retry_in=pause
                    )
                    self._clock.wait(stop, pause)
                    pause = min(PAUSES[1], 2 * pause)
                self._wake.set()

    def _end(self, stop: threading.Event) -> None:
        stop.wait()
        with self._lock:
            self._interrupt()

    def _interrupt(self) -> None:
        """Let the thread look at what is wanted. The lock is held."""
        self._wake.set()
        if self._watch is not None:
            self._watch.cancel()
            self._watch = None

    # --- the thread ------------------------------------------------------------------------

    def _follow(self, wanted: frozenset[Ref], stop: threading.Event) -> None:
        """Read the objects, then take in their changes until others are wanted."""
        revision = self._read(wanted)
        self._repetition.over()
        by_key = {ref.key: ref for ref in wanted}
        until = self._clock.monotonic() + RESYNC
        with self._store.watch_many(dict.fromkeys(by_key, revision), exact=True) as watch:
            with self._lock:
                if self._wanted != wanted:
                    return
                self._watch = watch
            while not stop.is_set() and self._wanted == wanted and self._clock.monotonic() < until:
                batch = watch.next(_POLL)
                if batch is not None:
                    self._take([(by_key[event.kv.key], event.kv) for event in batch.events])

    def _read(self, wanted: Collection[Ref]) -> int:
        """Returns a revision from which on a watch misses nothing."""
        refs = sorted(wanted, key=lambda ref: ref.key)
        revisions = []
        for start in range(0, len(refs), _READS):
            some = refs[start : start + _READS]
            result = self._store.txn([], [Get(ref.key) for ref in some])
            revisions.append(result.revision)
            reads = zip(some, result.reads, strict=True)
            self._take([(ref, kv[0] if kv else _absent(ref, result.revision)) for ref, kv in reads], anew=True)
        return min(revisions)

    def _take(self, news: Iterable[tuple[Ref, KeyValue]], *, anew: bool = False) -> None:
        """Note values of objects, those of version 0 as absent; `anew`: they were read, not watched, so an older
        revision is another store's.
        """
        changed = False
        with self._lock:
            for ref, kv in news:
                if ref not in self._wanted or (not anew and kv.mod_revision <= self._revisions.get(ref, 0)):
                    continue
                obj = self._decode(ref, kv) if kv.version else None
                changed = changed or ref not in self._objects or self._objects[ref] != obj
                self._objects[ref], self._revisions[ref] = obj, kv.mod_revision
        if changed:
            self._on_change()

    def _decode(self, ref: Ref, kv: KeyValue) -> Followed | None:
        try:
            return decode(ref.kind, kv.value, revision=kv.mod_revision)
        except DecodeError as error:
            self._log.warning("taken for absent", key=kv.key, error=str(error))
            return None


def _absent(ref: Ref, revision: int) -> KeyValue:
    return KeyValue(ref.key, b"", 0, revision, 0)
