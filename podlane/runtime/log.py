"""Structured logs: one record a line, key=value, or JSON for machines.

Owns: the form of a record. Invariant: a record starts at the first column with
`time=` and nothing a value holds can start another (newlines are escaped; a
traceback follows its record indented). Loggers may be made before `configure`
runs: they look the configuration up at each use. Why structlog: context
(`log.bind(pod=...)`) and level filtering without a global handler tree.
"""

from __future__ import annotations

import json
import logging
import sys
import threading
from collections.abc import MutableMapping
from datetime import UTC, datetime
from typing import Any, Literal, TextIO, cast

# structlog pulls in rich (and with it pygments) if it is installed, only for coloured tracebacks
# on a developer's terminal: 3.5 MB of memory in every daemon. Hide it while structlog loads.
_hide_rich = "structlog" not in sys.modules and "rich" not in sys.modules
if _hide_rich:
    sys.modules["rich"] = cast(Any, None)
import structlog  # noqa: E402 - after the above on purpose

if _hide_rich:
    del sys.modules["rich"]

Format = Literal["logfmt", "json"]
REMIND = 60.0  # seconds between two lines about what still fails as it did
LEVELS = ("debug", "info", "warning", "error")
FORMATS: tuple[Format, ...] = ("logfmt", "json")

Record = MutableMapping[str, Any]
Logger = structlog.typing.FilteringBoundLogger

_FIRST = ("time", "level", "component", "event")
_ESCAPES = str.maketrans({"\\": "\\\\", '"': '\\"', "\n": "\\n", "\r": "\\r", "\t": "\\t"})


def get_logger(name: str, **context: object) -> Logger:
    """Return the logger of a component; `context` is added to each of its records."""
    return cast(Logger, structlog.get_logger(component=name, **context))


def configure(level: str = "info", format: Format = "logfmt", stream: TextIO | None = None) -> None:  # noqa: A002 - the field's word
    """Set level, form and destination (default: standard error) for the whole process."""
    if level not in LEVELS:
        raise ValueError(f"configure logs: level is one of {', '.join(LEVELS)}, got {level!r}")
    if format not in FORMATS:
        raise ValueError(f"configure logs: format is one of {', '.join(FORMATS)}, got {format!r}")
    number: int = getattr(logging, level.upper())
    structlog.configure(
        processors=[
            structlog.contextvars.merge_contextvars,
            _add_time,
            structlog.processors.add_log_level,
            structlog.processors.format_exc_info,
            _render_json if format == "json" else _render_logfmt,
        ],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=_LineLoggerFactory(stream or sys.stderr),
        cache_logger_on_first_use=False,
    )
    root = logging.getLogger()
    for old in [h for h in root.handlers if isinstance(h, _FromStandardLibrary)]:
        root.removeHandler(old)
    root.addHandler(_FromStandardLibrary())
    root.setLevel(max(number, logging.WARNING))


class Repetition:
    """Tells what is worth a line from what was said a moment ago, for what is tried again and again.

    `remind`: seconds after which the same is said once more. Not thread-safe.
    """

    def __init__(self, remind: float = REMIND) -> None:
        self._remind = remind
        self._last = ""
        self._again = 0.0

    def is_news(self, text: str, now: float) -> bool:
        """Whether to say it; `now` is a clock's monotonic time."""
        if text == self._last and now < self._again:
            return False
        self._last, self._again = text, now + self._remind
        return True

    def over(self) -> None:
        """All is well again: whatever comes next is news."""
        self._last = ""


class _LineLogger:
    """Writes whole lines, one thread at a time."""

    def __init__(self, stream: TextIO, lock: threading.Lock) -> None:
        self._stream = stream
        self._lock = lock

    def msg(self, message: str) -> None:
        try:
            with self._lock:
                self._stream.write(message + "\n")
                self._stream.flush()
        except (OSError, ValueError):
            # The reader of our standard error is gone, or it is closed at exit: no reason to die.
            return

    debug = info = warning = error = critical = exception = log = msg


class _LineLoggerFactory:
    def __init__(self, stream: TextIO) -> None:
        self._logger = _LineLogger(stream, threading.Lock())

    def __call__(self, *_args: object) -> _LineLogger:
        return self._logger


class _FromStandardLibrary(logging.Handler):
    """Brings the records of libraries that log by `logging` (urllib3, grpc) into the same stream."""

    def emit(self, record: logging.LogRecord) -> None:
        level = "error" if record.levelno >= logging.ERROR else "warning"
        log = get_logger(record.name)
        getattr(log, level)(record.getMessage(), **({"exc_info": record.exc_info} if record.exc_info else {}))


def _add_time(_logger: object, _method: str, record: Record) -> Record:
    record["time"] = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
    return record


def _ordered(record: Record) -> dict[str, Any]:
    return {k: record[k] for k in _FIRST if k in record} | {k: v for k, v in record.items() if k not in _FIRST}


def _render_json(_logger: object, _method: str, record: Record) -> str:
    return json.dumps(_ordered(record), default=str, ensure_ascii=False)


def _render_logfmt(_logger: object, _method: str, record: Record) -> str:
    trace = record.pop("exception", None)
    line = " ".join(f"{key}={_value(value)}" for key, value in _ordered(record).items())
    if trace:
        line += "".join(f"\n    {part}" for part in str(trace).splitlines())
    return line


def _value(value: object) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:.6g}" if abs(value) < 1e6 else f"{value:.3f}"
    text = ",".join(map(str, value)) if isinstance(value, (list, tuple, set, frozenset)) else str(value)
    if text and not any(c in ' ="\\' or ord(c) < 0x20 or ord(c) == 0x7F for c in text):
        return text
    return f'"{text.translate(_ESCAPES)}"'


configure()
