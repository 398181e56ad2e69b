"""A record is one line that a person and a machine can both read."""

from __future__ import annotations

import io
import json
import logging
import re
import subprocess
import sys
from collections.abc import Iterator

import pytest

from podlane.runtime import log

pytestmark = pytest.mark.unit


@pytest.fixture
def stream() -> Iterator[io.StringIO]:
    target = io.StringIO()
    log.configure(stream=target)
    yield target
    log.configure()


def test_logfmt_line(stream: io.StringIO) -> None:
    log.get_logger("netd", node="n1").info(
        "sync complete", added=3, elapsed=0.0412345, ok=True, peers=("a", "b"), none=None, empty=""
    )
    time, _, rest = stream.getvalue().partition(" ")
    assert re.fullmatch(r"time=\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert rest == (
        'level=info component=netd event="sync complete" node=n1 added=3 elapsed=0.0412345 '
        'ok=true peers=a,b none= empty=""\n'
    )


def test_a_value_cannot_start_a_line_or_a_field(stream: io.StringIO) -> None:
    log.get_logger("x").info("got", text='a\nlevel=error "quoted" back\\slash\ttab')
    assert stream.getvalue().count("\n") == 1
    assert r'text="a\nlevel=error \"quoted\" back\\slash\ttab"' in stream.getvalue()


def test_a_traceback_follows_its_line_indented(stream: io.StringIO) -> None:
    try:
        raise KeyError("gone")
    except KeyError as error:
        log.get_logger("x").error("failed", exc_info=error)
    first, *others = stream.getvalue().splitlines()
    assert first.endswith("event=failed")
    assert others[0] == "    Traceback (most recent call last):"
    assert others[-1] == "    KeyError: 'gone'"
    assert all(line.startswith("    ") for line in others)


def test_json_lines() -> None:
    target = io.StringIO()
    log.configure(format="json", stream=target)
    try:
        log.get_logger("x").warning("later", retry_in=0.4, error=ValueError("née"))
    finally:
        log.configure()
    record = json.loads(target.getvalue())
    assert list(record)[:4] == ["time", "level", "component", "event"]
    assert (record["level"], record["retry_in"], record["error"]) == ("warning", 0.4, "née")


@pytest.mark.parametrize(("level", "written"), [("debug", 4), ("info", 3), ("warning", 2), ("error", 1)], ids=str)
def test_level(level: str, written: int) -> None:
    target = io.StringIO()
    logger = log.get_logger("made-before-configure")
    log.configure(level=level, stream=target)
    try:
        for method in (logger.debug, logger.info, logger.warning, logger.error):
            method("event")
    finally:
        log.configure()
    assert len(target.getvalue().splitlines()) == written


def test_bad_settings_are_refused() -> None:
    with pytest.raises(ValueError, match="level is one of debug, info, warning, error, got 'loud'"):
        log.configure(level="loud")
    with pytest.raises(ValueError, match="format is one of logfmt, json, got 'xml'"):
        log.configure(format="xml")  # type: ignore[arg-type]


def test_libraries_that_use_logging_come_out_in_the_same_form(stream: io.StringIO) -> None:
    logging.getLogger("urllib3").warning("retrying %s", "x")
    logging.getLogger("urllib3").info("chatter")
    assert 'level=warning component=urllib3 event="retrying x"\n' in stream.getvalue()
    assert "chatter" not in stream.getvalue()


def test_a_closed_stream_does_not_raise() -> None:
    target = io.StringIO()
    log.configure(stream=target)
    try:
        target.close()
        log.get_logger("x").error("nobody hears this")
    finally:
        log.configure()
    assert target.closed


def test_loading_the_logs_does_not_load_rich() -> None:
    """It would cost every daemon several MB; and rich must still load after."""
    code = "import podlane.runtime.log, sys; assert 'rich' not in sys.modules; import rich; print(rich.__name__)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "rich\n"


def test_what_fails_again_and_again_is_said_once_a_minute() -> None:
    said = log.Repetition(remind=60)
    assert [now for now in range(0, 200, 5) if said.is_news("no answer", now)] == [0, 60, 120, 180]
    assert said.is_news("another answer", 196), "something else is news"
    assert said.is_news("no answer", 197)
    assert not said.is_news("no answer", 198)
    said.over()
    assert said.is_news("no answer", 199)
