"""Real small programs: what comes back, and that nothing stays behind."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import pytest

from podlane.runtime.command import CommandError, CommandTimeout, run

pytestmark = pytest.mark.unit


def test_output_and_input() -> None:
    done = run(["sh", "-c", "cat; echo to-stderr >&2"], input="grüße\n", timeout=30)
    assert (done.stdout, done.stderr, done.returncode) == ("grüße\n", "to-stderr\n", 0)


def test_input_may_be_larger_than_a_pipe() -> None:
    assert len(run(["cat"], input=b"x" * 3_000_000, timeout=30).stdout) == 3_000_000


def test_a_program_that_ignores_its_input_is_no_error() -> None:
    assert run(["true"], input="x" * 1_000_000, timeout=30).returncode == 0


def test_without_input_there_is_no_terminal_to_wait_for() -> None:
    assert run(["cat"], timeout=30).stdout == ""


def test_undecodable_output_survives() -> None:
    out = run(["printf", r"a\377b"], timeout=30).stdout
    assert out.encode("utf-8", "surrogateescape") == b"a\xffb"


def test_a_failure_names_the_command_and_the_last_lines() -> None:
    script = "for i in 1 2 3 4 5 6 7; do echo line $i >&2; done; exit 3"
    with pytest.raises(CommandError) as caught:
        run(["sh", "-c", script], timeout=30)
    message = str(caught.value)
    assert message.startswith("run sh -c 'for i in")
    assert message.endswith("exit 3: line 3 | line 4 | line 5 | line 6 | line 7")
    assert caught.value.returncode == 3
    assert caught.value.stderr.startswith("line 1\n")


def test_unchecked_failures_are_returned() -> None:
    assert run(["sh", "-c", "exit 7"], timeout=30, check=False).returncode == 7
    assert run(["sh", "-c", "kill -9 $$"], timeout=30, check=False).returncode == -9


def test_death_by_signal_is_named() -> None:
    with pytest.raises(CommandError, match="ended by signal SIGKILL"):
        run(["sh", "-c", "kill -9 $$"], timeout=30)


def test_a_missing_program() -> None:
    with pytest.raises(CommandError, match=r"^run no-such-program -x: command not found$") as caught:
        run(["no-such-program", "-x"], timeout=30)
    assert caught.value.returncode is None


def test_a_program_that_may_not_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a program")
    with pytest.raises(CommandError, match="Permission denied"):
        run([str(tmp_path / "file")], timeout=30)


def test_the_deadline_kills_grandchildren_too(tmp_path: Path) -> None:
    pidfile = tmp_path / "pid"
    script = f"sleep 600 & echo $! > {pidfile}; echo half-way >&2; wait"
    with pytest.raises(CommandTimeout, match=r"not finished after 2 s: half-way$"):
        run(["sh", "-c", script], timeout=2)
    assert _is_gone(int(pidfile.read_text()))


def test_a_grandchild_that_left_the_group_cannot_hold_us(tmp_path: Path) -> None:
    """setsid takes the sleep, and with it our pipes, out of the reach of killpg."""
    pidfile = tmp_path / "pid"
    script = f"setsid sh -c 'echo $$ > {pidfile}; exec sleep 60' & wait"
    with pytest.raises(CommandTimeout, match="not finished after"):
        run(["sh", "-c", script], timeout=2)
    os.kill(int(pidfile.read_text()), signal.SIGKILL)


def test_messages_are_in_the_c_locale(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LC_ALL", "de_DE.UTF-8")
    assert run(["sh", "-c", "echo $LC_ALL"], timeout=30).stdout == "C.UTF-8\n"


def test_a_long_command_is_shortened() -> None:
    with pytest.raises(CommandError) as caught:
        run(["false", "x" * 5000], timeout=30)
    assert len(str(caught.value)) < 300


def _is_gone(pid: int) -> bool:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.01)
    return False
