"""Which version of its API an engine is spoken to in: a server on a unix socket in dockerd's place."""

from __future__ import annotations

import json
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path

import pytest

from scheduler.agent.docker import DockerRuntime
from scheduler.agent.runtime import RuntimeUnavailable

pytestmark = pytest.mark.unit


class Engine(socketserver.ThreadingUnixStreamServer):
    """Knows the API from `lowest` to `highest` and one question; `asked` are the paths of it."""

    daemon_threads = True

    def __init__(self, path: str) -> None:
        self.lowest, self.highest = "1.12", "1.41"
        self.asked: list[str] = []
        super().__init__(path, _Answer)


class _Answer(BaseHTTPRequestHandler):
    server: Engine

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        del format, args

    def do_GET(self) -> None:
        engine = self.server
        if self.path == "/version":
            return self._say(200, {"Version": "t", "ApiVersion": engine.highest, "MinAPIVersion": engine.lowest})
        engine.asked.append(self.path)
        version = float(self.path.split("/")[1].removeprefix("v"))
        if version < float(engine.lowest):
            text = f"client version {version} is too old. Minimum supported API version is {engine.lowest}"
            return self._say(400, {"message": text})
        return self._say(200, {"ServerVersion": "t", "NCPU": 2})

    def _say(self, status: int, answer: dict[str, object]) -> None:
        body = json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)


@pytest.fixture
def engine() -> Iterator[Engine]:
    with tempfile.TemporaryDirectory(prefix="plav-") as folder:
        server = Engine(f"{folder}/sock")
        threading.Thread(target=server.serve_forever, args=(0.01,)).start()
        yield server
        server.shutdown()
        server.server_close()


def runtime_of(engine: Engine) -> DockerRuntime:
    return DockerRuntime(f"unix://{engine.server_address!s}")


@pytest.mark.parametrize(
    ("lowest", "highest", "spoken"),
    [("1.12", "1.41", "1.41"), ("1.24", "1.49", "1.41"), ("1.44", "1.52", "1.44"), ("1.44", "1.44", "1.44")],
)
def test_the_oldest_version_that_both_know_is_spoken(engine: Engine, lowest: str, highest: str, spoken: str) -> None:
    engine.lowest, engine.highest = lowest, highest
    assert runtime_of(engine).info().cpus == 2
    assert engine.asked == [f"/v{spoken}/info"]


def test_an_engine_that_is_too_old_is_said(engine: Engine) -> None:
    engine.highest = "1.40"
    with pytest.raises(RuntimeUnavailable, match=r"expected API 1.41 \(Docker 20.10\) or later, got 1.40"):
        runtime_of(engine).info()
    assert engine.asked == []


def test_an_engine_replaced_by_a_newer_one_is_asked_anew(engine: Engine) -> None:
    runtime = runtime_of(engine)
    assert runtime.info().cpus == 2
    engine.lowest, engine.highest = "1.44", "1.52"
    assert runtime.info().cpus == 2
    assert runtime.info().cpus == 2
    assert engine.asked == ["/v1.41/info", "/v1.41/info", "/v1.44/info", "/v1.44/info"]


def test_why_an_engine_is_away_is_in_the_kernels_words(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailable, match=r"^inspect engine: dockerd: No such file or directory$"):
        DockerRuntime(f"unix://{tmp_path}/none").info()
