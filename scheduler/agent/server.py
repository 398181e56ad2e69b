"""The agent's own API: logs of containers, and commands in them.

Owns: `GET /logs/{namespace}/{pod}/{container}?follow&tail&since&timestamps&previous`
and `POST /exec/{namespace}/{pod}/{container}` with {"command", "tty", "stdin"},
answered by 101 and frames (frames.py). Invariants: nothing is answered but 401
without the cluster's bearer token, compared in constant time; a session ends
when either side does; at most MAX_SESSIONS at once, so the port cannot exhaust
the agent. `since` is Unix seconds. Errors are one line of text.
"""

from __future__ import annotations

import hmac
import json
import select
import socket
import threading
from collections.abc import Callable
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, BinaryIO, cast
from urllib.parse import parse_qs, unquote, urlsplit

from podlane.errors import PodlaneError
from podlane.runtime.log import get_logger
from scheduler.agent import containers as c
from scheduler.agent import frames
from scheduler.agent.plan import attempts
from scheduler.agent.runtime import ExecSession, LogStream, NoSuchContainer, NotRunning, Record, Runtime

MAX_SESSIONS = 64
REQUEST_TIMEOUT = 10.0
MAX_BODY = 1 << 20
_POLL_MS = 1000
_CHUNK = 32768


class Refused(PodlaneError):
    """A request that cannot be answered; `status` is the HTTP status."""

    def __init__(self, status: int, message: str) -> None:
        self.status = status
        super().__init__(message)


class AgentServer:
    """Serves from construction on; `close` ends it. Raises PodlaneError when the address cannot be had.

    `token` gives the token as of now; while it is empty everything is refused.
    """

    def __init__(self, host: str, port: int, *, runtime: Runtime, token: Callable[[], str]) -> None:
        self.runtime = runtime
        self.token = token
        self.sessions = threading.BoundedSemaphore(MAX_SESSIONS)
        try:
            self._server = _Server((host, port), self)
        except OSError as error:
            raise PodlaneError(f"listen on {host}:{port}: {error.strerror or error}") from error
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, name="agent-api", daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def find(self, namespace: str, pod: str, container: str, *, previous: bool = False) -> Record:
        """The latest (or the one before) container of a pod. Raises Refused."""
        mine = [
            r
            for r in self.runtime.list()
            if r.labels.get(c.POD_NAMESPACE) == namespace and r.labels.get(c.POD_NAME) == pod
        ]
        # a pod of the same name may be ending still: the younger one is meant
        mine.sort(key=lambda r: r.created_at, reverse=True)
        mine = [r for r in mine if c.pod_uid(r) == c.pod_uid(mine[0])]
        history = [r for r in attempts(mine, container) if container != c.INFRA]
        if not history:
            raise Refused(404, f'container "{container}" of pod {namespace}/{pod} is not on this node')
        if not previous:
            return history[0]
        if len(history) < 2:
            raise Refused(404, f'previous terminated container "{container}" in pod "{pod}" not found')
        return history[1]


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    block_on_close = False
    allow_reuse_address = True

    def __init__(self, address: tuple[str, int], agent: AgentServer) -> None:
        self.agent = agent
        super().__init__(address, _Handler)

    def server_bind(self) -> None:
        # not HTTPServer's: it asks the resolver for a name nobody needs
        socket.socket.bind(self.socket, self.server_address)
        self.server_address = self.socket.getsockname()
        self.server_name, self.server_port = "agent", self.server_address[1]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "podlane-agent"
    sys_version = ""
    timeout = REQUEST_TIMEOUT
    server: _Server

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        get_logger("agent-api").debug("request", client=self.client_address[0], text=format % args)

    def _answer(self, handle: Callable[[str, list[str], dict[str, str]], None]) -> None:
        self.close_connection = True
        agent = self.server.agent
        if not agent.sessions.acquire(blocking=False):
            self._refuse(503, f"{MAX_SESSIONS} sessions are open already")
            return
        try:
            self._check_token()
            url = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
            kind, *parts = [unquote(part) for part in url.path.strip("/").split("/")]
            if len(parts) != 3 or not all(parts):
                raise Refused(404, f"no such path: {url.path}")
            handle(kind, parts, query)
        except Refused as error:
            self._refuse(error.status, str(error))
        except (NoSuchContainer, NotRunning) as error:
            self._refuse(409, str(error))
        except PodlaneError as error:
            self._refuse(500, str(error))
        except OSError:
            return  # the client is gone
        finally:
            agent.sessions.release()

    def _check_token(self) -> None:
        wanted = self.server.agent.token()
        given = self.headers.get("Authorization", "")
        # in constant time, and never equal to an empty token
        right = hmac.compare_digest(given.encode("utf-8", "replace"), f"Bearer {wanted}".encode())
        if not wanted or not right:
            raise Refused(401, "the cluster's bearer token is required")

    def _refuse(self, status: int, message: str) -> None:
        body = f"{message}\n".encode()
        with suppress(OSError):
            self.send_response(status)
            if status == 401:
                self.send_header("WWW-Authenticate", "Bearer")
            self.send_header("Content-Type", "text/plain; charset=utf-8")
            self.send_header("Content-Length", str(len(body)))
            self.send_header("Connection", "close")
            self.end_headers()
            self.wfile.write(body)

    # --- logs --------------------------------------------------------------------------

    def _get(self, kind: str, parts: list[str], query: dict[str, str]) -> None:
        if kind != "logs":
            raise Refused(404, f"no such path: {self.path}")
        agent = self.server.agent
        record = agent.find(parts[0], parts[1], parts[2], previous=_flag(query, "previous"))
        if record.state == "created":
            raise Refused(409, f'container "{parts[2]}" of pod {parts[0]}/{parts[1]} is waiting to start')
        tail, since = _number(query, "tail"), _number(query, "since")
        stream = agent.runtime.logs(
            record.id,
            follow=_flag(query, "follow"),
            tail=None if tail is None else int(tail),
            since=since,
            timestamps=_flag(query, "timestamps"),
        )
        self.send_response(200)
        self.send_header("Content-Type", "application/octet-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.send_header("Connection", "close")
        self.end_headers()
        ended = threading.Event()
        threading.Thread(target=self._watch_client, args=(stream, ended), name="logs-client", daemon=True).start()
        try:
            for data in stream:
                if data:
                    self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
                    self.wfile.flush()
            self.wfile.write(b"0\r\n\r\n")
        finally:
            ended.set()
            stream.close()

    def _watch_client(self, stream: LogStream, ended: threading.Event) -> None:
        """Close the stream when the client goes away, which writing alone would not notice while nothing comes."""
        poll = select.poll()
        poll.register(self.connection, select.POLLIN | select.POLLHUP)
        while not ended.is_set():
            if poll.poll(_POLL_MS):
                with suppress(OSError):
                    if self.connection.recv(1, socket.MSG_PEEK):
                        return  # it talks out of turn: let writing find out
                break
        if not ended.is_set():
            stream.close()

    # --- exec -----------------------------------------------------------------------------

    def _post(self, kind: str, parts: list[str], query: dict[str, str]) -> None:
        if kind != "exec" or query:
            raise Refused(404, f"no such path: {self.path}")
        if self.headers.get("Upgrade", "").lower() != frames.UPGRADE:
            raise Refused(426, f"expected the header Upgrade: {frames.UPGRADE}")
        command, tty, stdin = self._exec_request()
        agent = self.server.agent
        record = agent.find(*parts)
        if not record.running:
            raise Refused(409, f'container "{parts[2]}" of pod {parts[0]}/{parts[1]} is not running')
        session = agent.runtime.open_exec(record.id, command, tty=tty, stdin=stdin)
        self.send_response(101)
        self.send_header("Upgrade", frames.UPGRADE)
        self.send_header("Connection", "Upgrade")
        self.end_headers()
        self.wfile.flush()
        self.connection.settimeout(None)  # a person at a terminal may think for hours
        threading.Thread(target=self._feed, args=(session,), name="exec-input", daemon=True).start()
        try:
            for stream, data in session.output():
                channel = frames.STDERR if stream == "stderr" else frames.STDOUT
                for start in range(0, len(data), _CHUNK):
                    self.wfile.write(frames.pack(channel, data[start : start + _CHUNK]))
            self.wfile.write(frames.pack(frames.RESULT, self._result(session)))
            self.wfile.flush()
        finally:
            session.close()
            with suppress(OSError):
                self.connection.shutdown(socket.SHUT_RDWR)

    @staticmethod
    def _result(session: ExecSession) -> bytes:
        try:
            return json.dumps({"exitCode": session.exit_code()}).encode()
        except PodlaneError as error:
            return json.dumps({"error": str(error)}).encode()

    def _exec_request(self) -> tuple[tuple[str, ...], bool, bool]:
        try:
            length = int(self.headers.get("Content-Length", ""))
            if not 0 < length <= MAX_BODY:
                raise ValueError(f"expected a body of at most {MAX_BODY} bytes")
            asked: Any = json.loads(self.rfile.read(length))
            command = asked["command"]
            if not isinstance(command, list) or not command or not all(isinstance(w, str) for w in command):
                raise ValueError("command: expected a list of words")
            return tuple(command), bool(asked.get("tty")), bool(asked.get("stdin"))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise Refused(400, f"read exec request: {error}") from error

    def _feed(self, session: ExecSession) -> None:
        """Carry the client's frames to the command; when the client goes, so does the session."""
        try:
            while (frame := frames.read(cast(BinaryIO, self.rfile))) is not None:
                channel, data = frame
                if channel == frames.STDIN:
                    session.send(data)
                elif channel == frames.END_INPUT:
                    session.end_input()
                elif channel == frames.RESIZE:
                    size = json.loads(data)
                    session.resize(int(size["height"]), int(size["width"]))
        except (PodlaneError, OSError, ValueError, KeyError, TypeError) as error:
            get_logger("agent-api").debug("exec input ended", error=str(error))
        session.close()


def _flag(query: dict[str, str], name: str) -> bool:
    value = query.get(name)
    return value is not None and value.lower() not in {"0", "false"}


def _number(query: dict[str, str], name: str) -> float | None:
    text = query.get(name, "")
    if not text:
        return None
    try:
        value = float(text)
    except ValueError as error:
        raise Refused(400, f"{name}: expected a number, got {text!r}") from error
    if not 0 <= value < float("inf"):
        raise Refused(400, f"{name}: expected a number ≥ 0, got {text!r}")
    return value
