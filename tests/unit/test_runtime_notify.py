"""What systemd would receive, on both kinds of socket."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from podlane.runtime.notify import Notifier

pytestmark = pytest.mark.unit


@pytest.mark.parametrize("kind", ["path", "abstract"])
def test_datagrams_arrive(kind: str, tmp_path: Path) -> None:
    name = str(tmp_path / "notify") if kind == "path" else f"podlane-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name if kind == "path" else "\0" + name)
        receiver.settimeout(10)
        notifier = Notifier({"NOTIFY_SOCKET": name if kind == "path" else "@" + name})
        notifier.send("READY=1", "STATUS=ready")
        assert receiver.recv(4096) == b"READY=1\nSTATUS=ready"


def test_without_a_socket_or_a_receiver_nothing_happens(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    Notifier({}).send("READY=1")
    assert "level=" not in capfd.readouterr().err
    absent = Notifier({"NOTIFY_SOCKET": str(tmp_path / "nobody")})
    absent.send("READY=1")
    absent.send("READY=1")
    assert absent.watchdog is None


def test_a_full_socket_does_not_block(tmp_path: Path) -> None:
    name = str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as receiver:
        receiver.bind(name)
        notifier = Notifier({"NOTIFY_SOCKET": name})
        for _ in range(5000):  # far more than a receive queue holds
            notifier.send("WATCHDOG=1")
        assert receiver.recv(64) == b"WATCHDOG=1"


@pytest.mark.parametrize(
    ("environ", "seconds"),
    [
        ({}, None),
        ({"WATCHDOG_USEC": "30000000"}, 30.0),
        ({"WATCHDOG_USEC": "500000", "WATCHDOG_PID": str(os.getpid())}, 0.5),
        ({"WATCHDOG_USEC": "30000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
    ],
)
def test_watchdog_interval(environ: dict[str, str], seconds: float | None) -> None:
    assert Notifier(environ).watchdog == seconds
