"""Commands inside a virtual machine, whatever its network is like.

Owns: the conversation with the guest agent over a virtio serial port
(QEMU guest agent protocol: JSON lines, `guest-exec` and its status). Invariant:
each call opens the port anew and synchronizes first, so an answer is never
taken for another question's.
"""

from __future__ import annotations

import base64
import itertools
import json
import socket
import time
from pathlib import Path
from typing import Any

from podlane.errors import PodlaneError
from podlane.runtime.command import Completed

ANSWER_SECONDS = 60.0  # for the agent to answer at all, on a machine that has half a processor
LONGEST_PAUSE = 5.0  # between looks whether a command has ended
_numbers = itertools.count(int(time.time()))


class GuestError(PodlaneError):
    """The guest agent does not answer, or says no."""


class GuestFailed(GuestError):
    """A command in the guest ended with another code than 0."""


class Guest:
    def __init__(self, name: str, port: Path) -> None:
        self.name, self._port = name, port

    def run(self, script: str, *, timeout: float = 300, check: bool = True) -> Completed:
        """Run a shell script as root, and wait for its end."""
        deadline = time.monotonic() + timeout
        with _Line(self._port) as line:
            pid = line.ask(
                "guest-exec",
                {"path": "/bin/sh", "arg": ["-c", script], "capture-output": True, "env": _ENVIRONMENT},
            )["pid"]
        pause = 0.1
        while True:
            with _Line(self._port) as line:
                status = line.ask("guest-exec-status", {"pid": pid})
            if status["exited"]:
                break
            if time.monotonic() > deadline:
                raise GuestError(f"run in {self.name}: not finished after {timeout:g} s: {script}")
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 1.5)
        done = completed(status)
        if check and done.returncode != 0:
            said = (done.stderr.strip() or done.stdout.strip())[-1500:]
            raise GuestFailed(f"run in {self.name}: exit {done.returncode}: {script}\n{said}")
        return done

    def answers(self) -> bool:
        """Whether the agent is there, within a few seconds."""
        try:
            with _Line(self._port, timeout=10) as line:
                line.ask("guest-ping", {})
        except GuestError:
            return False
        return True


_ENVIRONMENT = ["PATH=/opt/podlane/bin:/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LC_ALL=C.UTF-8"]


def completed(status: dict[str, Any]) -> Completed:
    """What `guest-exec-status` says of a command that ended."""

    def text(name: str) -> str:
        return base64.b64decode(status.get(name, "")).decode(errors="replace")

    code = status["exitcode"] if "exitcode" in status else -int(status.get("signal", 1))
    return Completed(text("out-data"), text("err-data"), code)


class _Line:
    def __init__(self, port: Path, timeout: float = ANSWER_SECONDS) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(timeout)
        try:
            self._socket.connect(str(port))
            self._file = self._socket.makefile("rb")
            # A 0xFF byte makes the agent forget half a question that somebody may have left.
            number = next(_numbers)
            self._send(b"\xff" + _question("guest-sync", {"id": number}))
            while self._answer().get("return") != number:
                pass
        except OSError as error:
            self._socket.close()
            raise GuestError(f"talk to the guest agent at {port}: {error}") from error
        except GuestError:
            self._socket.close()
            raise

    def __enter__(self) -> _Line:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        self._socket.close()

    def ask(self, command: str, arguments: dict[str, Any]) -> Any:
        try:
            self._send(_question(command, arguments))
            answer = self._answer()
        except OSError as error:
            raise GuestError(f"ask the guest agent {command}: {error}") from error
        if "error" in answer:
            raise GuestError(f"ask the guest agent {command}: {answer['error'].get('desc', answer['error'])}")
        return answer["return"]

    def _send(self, data: bytes) -> None:
        self._socket.sendall(data)

    def _answer(self) -> dict[str, Any]:
        line = self._file.readline().lstrip(b"\xff")
        if not line:
            raise GuestError("talk to the guest agent: the machine closed the port")
        answer: dict[str, Any] = json.loads(line)
        return answer


def _question(command: str, arguments: dict[str, Any]) -> bytes:
    return json.dumps({"execute": command, "arguments": arguments}).encode() + b"\n"
