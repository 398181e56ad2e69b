"""What an ended container left as its last words: the message of its status.

Owns: reading them once. The file at terminationMessagePath is one of the node
that is mounted there, so it outlives the container; with the policy
FallbackToLogsOnError and nothing in it, a container that failed has the end of
its log for a message. Invariant: the log is asked for beside the sync, for the
engine may take its time. Source: getTerminationMessage
(pkg/kubelet/kuberuntime/kuberuntime_container.go) and its limits.
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Iterable

from podlane.api.types import Container, Pod
from podlane.errors import PodlaneError
from scheduler.agent import containers as c
from scheduler.agent.history import all_containers
from scheduler.agent.podpaths import Paths
from scheduler.agent.runtime import Record, Runtime
from scheduler.agent.workers import MakePool, Workers, threads

MAX_BYTES = 4096
LOG_BYTES = 2048
LOG_LINES = 80


class LastWords:
    """`look_again(seconds)` asks for another sync."""

    def __init__(
        self,
        runtime: Runtime,
        paths: Callable[[], Paths],
        look_again: Callable[[float], None],
        *,
        pool: MakePool = threads,
    ) -> None:
        self._runtime = runtime
        self._paths = paths
        self._workers: Workers[str] = Workers("last-words", 2, look_again, pool=pool)
        self._lock = threading.Lock()
        self._known: dict[str, str] = {}

    def look(self, pod: Pod, records: Iterable[Record]) -> dict[str, str]:
        """The messages of a pod's ended containers, by id, as far as they are known by now."""
        specs = {ct.name: ct for ct in all_containers(pod)}
        ended = [
            (specs[c.container_name(r)], r) for r in records if r.state == "exited" and c.container_name(r) in specs
        ]
        for ct, record in ended:
            if record.id not in self._known:
                self._read(pod, ct, record)
        with self._lock:
            return {r.id: self._known[r.id] for _, r in ended if r.id in self._known}

    def keep(self, ids: Collection[str]) -> None:
        """Forget every container but these."""
        with self._lock:
            self._known = {identity: text for identity, text in self._known.items() if identity in ids}

    def close(self) -> None:
        self._workers.close()

    def _read(self, pod: Pod, ct: Container, record: Record) -> None:
        path = self._paths().last_words(pod.metadata.uid, ct.name, c.attempt(record))
        text = _end_of(path)
        if not text and ct.termination_message_policy == "FallbackToLogsOnError" and record.exit_code != 0:
            self._workers.submit(record.id, lambda: self._read_log(record.id))
            return
        with self._lock:
            self._known[record.id] = text

    def _read_log(self, identity: str) -> float:
        text = b""
        try:
            stream = self._runtime.logs(identity, tail=LOG_LINES)
            for piece in stream:
                text = (text + piece)[-LOG_BYTES:]
        except PodlaneError as error:
            text = f"Error on reading termination message from logs: {error}".encode()
        with self._lock:
            self._known[identity] = text.decode("utf-8", "replace")
        return 0.0


def _end_of(path: str) -> str:
    try:
        with open(path, "rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - MAX_BYTES))
            return file.read(MAX_BYTES).decode("utf-8", "replace")
    except OSError:
        return ""
