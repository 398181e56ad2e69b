"""The other side of the agent's API, for the operator's command.

Owns: logs, exec and stats over HTTPS from one agent. Invariants: nothing is sent,
above all not a token, before the other side has shown the certificate that makes it
that agent (trust.py); a refusal becomes an AgentError with the agent's own words;
nothing is asked without a deadline but what a person waits for (followed logs, a
running command).
"""

from __future__ import annotations

import http.client
import io
import json
import socket
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO, cast
from urllib.parse import quote, urlencode, urlsplit

from podlane.errors import PodlaneError
from podlane.runtime.wire import Wire
from scheduler.agent import frames
from scheduler.agent.trust import Trust, cause_of

TIMEOUT = 20.0
"""Seconds for connecting and for the agent's answer to begin: more than the agent waits for its engine."""
_CHUNK = 65536


class AgentError(PodlaneError):
    """The agent refused, or cannot be reached; `status` is 0 then."""

    def __init__(self, message: str, status: int = 0) -> None:
        self.status = status
        super().__init__(message)


class AgentClient:
    """`base_url` as in `https://192.168.64.11:10250`. Raises AgentError for another."""

    def __init__(self, base_url: str, trust: Trust, *, timeout: float = TIMEOUT) -> None:
        parts = urlsplit(base_url)
        if parts.scheme != "https" or not parts.hostname:
            raise AgentError(f'reach agent: expected https://HOST:PORT, got "{base_url}"')
        self._host, self._port = parts.hostname, parts.port or 10250
        self._trust = trust
        self._timeout = timeout

    def logs(
        self,
        namespace: str,
        pod: str,
        container: str,
        *,
        follow: bool = False,
        tail: int | None = None,
        since: float | None = None,
        since_seconds: float | None = None,
        timestamps: bool = False,
        previous: bool = False,
        limit_bytes: int | None = None,
    ) -> Iterator[bytes]:
        """A container's output in pieces; `since` in Unix seconds, `since_seconds` before now by the agent's clock.

        Raises AgentError.
        """
        flags = {"follow": follow, "timestamps": timestamps, "previous": previous}
        query: dict[str, str] = {name: "1" for name, given in flags.items() if given}
        numbers = {"tail": tail, "since": since, "sinceSeconds": since_seconds, "limitBytes": limit_bytes}
        query |= {name: str(given) for name, given in numbers.items() if given is not None}
        path = f"{_path('logs', namespace, pod, container)}?{urlencode(query)}"
        wire, response = self._request("GET", path)
        if response.status != 200:
            raise self._refusal(wire, response)
        return self._pieces(wire, response, follow=follow)

    def stats(self) -> Any:
        """What the node and its pods use, as stats.py tells it. Raises AgentError."""
        wire, response = self._request("GET", "/stats")
        if response.status != 200:
            raise self._refusal(wire, response)
        try:
            return json.loads(response.read())
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise AgentError(f"read stats from agent {self._host}: {error}") from error
        finally:
            wire.close()

    def exec(
        self,
        namespace: str,
        pod: str,
        container: str,
        command: Sequence[str],
        *,
        tty: bool = False,
        stdin: bool = False,
    ) -> AgentExec:
        """Start a command in a container. Raises AgentError."""
        body = json.dumps({"command": list(command), "tty": tty, "stdin": stdin}).encode()
        headers = {"Upgrade": frames.UPGRADE, "Connection": "Upgrade", "Content-Type": "application/json"}
        wire, response = self._request("POST", _path("exec", namespace, pod, container), body, headers)
        if response.status != 101:
            raise self._refusal(wire, response)
        return AgentExec(wire, response)

    def _request(
        self, method: str, path: str, body: bytes | None = None, headers: dict[str, str] | None = None
    ) -> tuple[Wire, http.client.HTTPResponse]:
        wire = self._connect()
        connection = http.client.HTTPConnection(self._host, self._port)
        connection.sock = cast(socket.socket, _Socket(wire))
        given = self._trust.headers() | (headers or {})
        try:
            connection.request(method, path, body, given)
            return wire, connection.getresponse()
        except (OSError, http.client.HTTPException) as error:
            wire.close()
            raise AgentError(f"reach agent {self._host}:{self._port}: {cause_of(error)}") from error

    def _connect(self) -> Wire:
        """A connection to the agent, and to nobody else. Raises AgentError."""
        where = f"{self._host}:{self._port}"
        context = self._trust.context()
        try:
            plain = socket.create_connection((self._host, self._port), self._timeout)
            tls = context.wrap_socket(plain, do_handshake_on_connect=False, server_hostname=self._trust.hostname)
            wire = Wire(tls)
            wire.limit(self._timeout)
            wire.handshake()
        except OSError as error:
            raise AgentError(f"reach agent {where}: {cause_of(error)}") from error
        if doubt := self._trust.check(wire):
            wire.close()
            raise AgentError(f"reach agent {where}: {doubt}")
        return wire

    def _refusal(self, wire: Wire, response: http.client.HTTPResponse) -> AgentError:
        try:
            text = response.read(4096).decode("utf-8", "replace").strip()
        except (OSError, http.client.HTTPException) as error:
            text = f"read answer of agent {self._host}: {error}"
        wire.close()
        return AgentError(text or f"agent {self._host}: HTTP status {response.status}", response.status)

    def _pieces(self, wire: Wire, response: http.client.HTTPResponse, *, follow: bool) -> Iterator[bytes]:
        try:
            while True:
                wire.limit(None if follow else self._timeout)
                data = response.read1(_CHUNK)
                if not data:
                    return
                yield data
        except (OSError, http.client.HTTPException) as error:
            raise AgentError(f"read logs from agent {self._host}: {error}") from error
        finally:
            wire.close()


class _Socket:
    """A wire as http.client wants it: it closes its socket as soon as the answer has its own file."""

    def __init__(self, wire: Wire) -> None:
        self._wire = wire
        self.sendall = wire.write

    def makefile(self, mode: str) -> io.BufferedReader:
        assert mode == "rb"
        return io.BufferedReader(self._wire)

    def close(self) -> None:
        return


class AgentExec:
    """A running command. `output` may be read in one thread while another sends."""

    def __init__(self, wire: Wire, response: http.client.HTTPResponse) -> None:
        self._wire = wire
        self._response = response  # which closes its file when nobody holds it
        self._source = cast(BinaryIO, response.fp)  # and which may have read ahead
        self._code: int | None = None
        self._error = "the connection to the agent broke"
        wire.limit(None)

    def output(self) -> Iterator[tuple[str, bytes]]:
        """("stdout" | "stderr", bytes) until the command has ended."""
        while True:
            try:
                frame = frames.read(self._source)
            except (OSError, ValueError):
                frame = None
            if frame is None:
                return
            channel, data = frame
            if channel == frames.RESULT:
                told = json.loads(data)
                self._code = told.get("exitCode")
                self._error = told.get("error", self._error)
                return
            yield ("stderr" if channel == frames.STDERR else "stdout"), data

    def send(self, data: bytes) -> None:
        """Input for the command. Raises AgentError when the session has ended."""
        for start in range(0, len(data), _CHUNK):
            self._send(frames.pack(frames.STDIN, data[start : start + _CHUNK]))

    def end_input(self) -> None:
        """The command sees the end of its input."""
        self._send(frames.pack(frames.END_INPUT))

    def resize(self, height: int, width: int) -> None:
        """Tell the command's terminal its size in characters."""
        self._send(frames.pack(frames.RESIZE, json.dumps({"height": height, "width": width}).encode()))

    def exit_code(self) -> int:
        """Of the command; call it after `output` ended. Raises AgentError when it is not known."""
        if self._code is None:
            raise AgentError(f"read exit code: {self._error}")
        return self._code

    def close(self) -> None:
        """End the session from any thread; the command sees its terminal or input close."""
        self._wire.shut()

    def _send(self, frame: bytes) -> None:
        try:
            self._wire.write(frame)
        except (OSError, ValueError) as error:  # ValueError: it was closed
            raise AgentError(f"send to agent: {error}") from error


def _path(*parts: str) -> str:
    return "/" + "/".join(quote(part, safe="") for part in parts)
