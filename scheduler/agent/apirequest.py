"""One request to the agent's API, from its handshake to its end.

Owns: what is asked and answered (see server.py for the paths and the rules).
Invariant: whatever ends a request, its connection's threads end before its socket
is closed, so none of them meets another connection under the same number.
"""

from __future__ import annotations

import io
import json
import select
import ssl
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler
from typing import TYPE_CHECKING, Any, BinaryIO, cast
from urllib.parse import parse_qs, unquote, urlsplit

from podlane.errors import PodlaneError
from podlane.runtime.log import get_logger
from podlane.runtime.wire import Wire
from scheduler.agent import frames
from scheduler.agent.guard import UNKNOWN, Refused
from scheduler.agent.runtime import ExecSession, LogStream, NoSuchContainer, NotRunning

if TYPE_CHECKING:
    from scheduler.agent.server import RequestServer

MAX_SESSIONS = 64
MAX_HEAD = 1 << 16
MAX_BODY = 1 << 20
_POLL_MS = 1000
_CHUNK = 32768
_JOIN = 5.0


class Request(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server_version = "podlane-agent"
    sys_version = ""
    server: RequestServer

    def setup(self) -> None:
        self._is_stranger = True
        self._beside: threading.Thread | None = None
        self.wire = Wire(self.request)
        self.rfile = io.BufferedReader(self.wire, _CHUNK)
        self.wfile = cast(io.BufferedIOBase, self.wire)
        self.wire.limit(self.server.agent.request_timeout, MAX_HEAD)

    def handle(self) -> None:
        try:
            self._shake_hands()
            self.server.agent.begin(self.wire)
            super().handle()
        finally:
            self._admit()

    def _shake_hands(self) -> None:
        try:
            self.wire.handshake()
        except ssl.SSLError:
            self.wire.drain(_JOIN)
            raise

    def finish(self) -> None:
        self.server.agent.end(self.wire)
        self.wire.shut()
        if self._beside is not None:  # it uses the connection, whose number another one will have
            self._beside.join(_JOIN)
        self.wire.close()

    def do_GET(self) -> None:
        self._answer(self._get)

    def do_POST(self) -> None:
        self._answer(self._post)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        get_logger("agent-api").debug("request", client=self.client_address[0], text=format % args)

    def send_error(self, code: int, message: str | None = None, explain: str | None = None) -> None:
        """What the base class makes of a request it does not understand."""
        del explain
        self._refuse(*((401, UNKNOWN) if self._is_stranger else (code, message or "bad request")))

    def _admit(self) -> None:
        if self._is_stranger:
            self._is_stranger = False
            self.server.no_stranger(self.client_address[0])

    def _answer(self, handle: Callable[[str, list[str], dict[str, str]], None]) -> None:
        self.close_connection = True
        try:
            self._check()
            self._admit()
            self.wire.limit(self.server.agent.request_timeout, MAX_BODY)
            url = urlsplit(self.path)
            query = {key: values[-1] for key, values in parse_qs(url.query, keep_blank_values=True).items()}
            kind, *parts = [unquote(part) for part in url.path.strip("/").split("/")]
            if not self.server.agent.sessions.acquire(blocking=False):
                raise Refused(503, f"{MAX_SESSIONS} sessions are open already")
            try:
                handle(kind, parts, query)
            finally:
                self.server.agent.sessions.release()
        except Refused as error:
            self._refuse(error.status, str(error))
        except (NoSuchContainer, NotRunning) as error:
            self._refuse(409, str(error))
        except PodlaneError as error:
            self._refuse(500, str(error))
        except OSError:
            return  # the client is gone

    def _check(self) -> None:
        self.server.agent.guard.check(self.wire.subject(), self.headers.get("Authorization", ""))

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

    def _begin(self, kind: str, *header: str) -> None:
        """Answer a request that is in order; from here on the client may take its time."""
        self.wire.limit(None)
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header(*header)
        self.send_header("Connection", "close")
        self.end_headers()

    def _run_beside(self, work: Callable[..., None], *args: object) -> None:
        self._beside = threading.Thread(target=work, args=args, name="agent-api-client", daemon=True)
        self._beside.start()

    # --- logs --------------------------------------------------------------------------

    def _get(self, kind: str, parts: list[str], query: dict[str, str]) -> None:
        if kind == "logs" and len(parts) == 3 and all(parts):
            self._logs(parts, query)
        elif kind == "stats" and not parts:
            self._stats()
        else:
            raise Refused(404, f"no such path: {self.path}")

    def _logs(self, parts: list[str], query: dict[str, str]) -> None:
        agent = self.server.agent
        record = agent.find(parts[0], parts[1], parts[2], previous=_flag(query, "previous"))
        if record.state == "created":
            raise Refused(409, f'container "{parts[2]}" of pod {parts[0]}/{parts[1]} is waiting to start')
        tail, since, ago = _number(query, "tail"), _number(query, "since"), _number(query, "sinceSeconds")
        limit = _number(query, "limitBytes")
        stream = agent.runtime.logs(
            record.id,
            follow=_flag(query, "follow"),
            tail=None if tail is None else int(tail),
            since=since if ago is None else agent.clock.now() - ago,
            timestamps=_flag(query, "timestamps"),
        )
        self._begin("application/octet-stream", "Transfer-Encoding", "chunked")
        ended = threading.Event()
        self._run_beside(self._watch_client, stream, ended)
        try:
            for data in _at_most(stream, limit):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(data), data))
            self.wfile.write(b"0\r\n\r\n")
        finally:
            ended.set()
            stream.close()

    def _watch_client(self, stream: LogStream, ended: threading.Event) -> None:
        """Close the stream when the client goes away, which writing alone would not notice while nothing comes."""
        poll = select.poll()
        poll.register(self.wire, select.POLLRDHUP)
        while not ended.is_set():
            if poll.poll(_POLL_MS):
                break
        if not ended.is_set():
            stream.close()

    # --- stats -----------------------------------------------------------------------------

    def _stats(self) -> None:
        body = json.dumps(self.server.agent.usage()).encode()
        self._begin("application/json", "Content-Length", str(len(body)))
        self.wfile.write(body)

    # --- exec -----------------------------------------------------------------------------

    def _post(self, kind: str, parts: list[str], query: dict[str, str]) -> None:
        if kind != "exec" or query or len(parts) != 3 or not all(parts):
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
        self.wire.limit(None)  # a person at a terminal may think for hours
        self._run_beside(self._feed, session)
        try:
            for stream, data in session.output():
                channel = frames.STDERR if stream == "stderr" else frames.STDOUT
                for start in range(0, len(data), _CHUNK):
                    self.wfile.write(frames.pack(channel, data[start : start + _CHUNK]))
            self.wfile.write(frames.pack(frames.RESULT, self._result(session)))
            self.wire.linger(_JOIN)  # the client goes when it has read that
        finally:
            session.close()

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


def _at_most(pieces: Iterable[bytes], limit: float | None) -> Iterator[bytes]:
    """The pieces that are not empty, up to so many bytes of them."""
    left = limit
    for piece in pieces:
        data = piece if left is None else piece[: int(left)]
        if data:
            yield data
        if left is not None:
            left -= len(data)
            if left <= 0:
                return
