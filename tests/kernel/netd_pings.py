"""Echo requests that go on until they are stopped, however long what happens meanwhile takes, and none may be lost."""

from __future__ import annotations

import signal
import subprocess
from dataclasses import dataclass
from pathlib import Path

from tests.kernel.conftest import eventually
from tests.kernel.netd_nodes import Node


@dataclass
class Pings:
    """100 echo requests a second from one node's pod to another's, until `stop`."""

    source: Node
    file: Path
    process: subprocess.Popen[bytes]

    @classmethod
    def start(cls, source: Node, target: Node) -> Pings:
        assert source.pod is not None
        file = source.folder / f"pings-{target.address}"
        argv = source.pod.ping_argv(target.address, count=60_000, interval=0.01)
        with file.open("wb") as out:
            pings = cls(source, file, source.pod.popen(argv, stdout=out))
        eventually(lambda: pings.answered)
        return pings

    @property
    def answered(self) -> list[int]:
        """The numbers of the requests that were, of lines that are whole."""
        return [int(line) for line in self.file.read_text().splitlines(keepends=True) if line.endswith("\n")]

    def stop(self) -> int:
        """How many there were. Fails if one got no answer, or if there are none any more."""
        assert self.source.pod is not None
        before = len(self.answered)
        eventually(lambda: len(self.answered) > before + 5)
        self.source.pod.end(self.process, signal.SIGTERM)
        answered = self.answered
        assert answered == list(range(len(answered)))
        return len(answered)
