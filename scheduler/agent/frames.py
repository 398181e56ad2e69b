"""The frames an exec session is made of, both ways.

Owns: their form: one byte channel, four bytes length (big endian), that many
bytes. Invariant: a reader never takes more than MAX_FRAME bytes for one frame,
whatever the other side says. Terminal input and output are bytes as they are;
a RESIZE holds {"height", "width"}, a RESULT {"exitCode"} or {"error"} as JSON.
"""

from __future__ import annotations

import struct
from typing import BinaryIO

STDIN, STDOUT, STDERR, END_INPUT, RESIZE, RESULT = range(6)
MAX_FRAME = 1 << 20
_HEADER = struct.Struct(">BI")

UPGRADE = "podlane-exec/1"
"""The protocol named in the Upgrade header."""


def pack(channel: int, data: bytes = b"") -> bytes:
    return _HEADER.pack(channel, len(data)) + data


def read(source: BinaryIO) -> tuple[int, bytes] | None:
    """The next frame; None at the end of the stream, also in the middle of a frame.

    Raises ValueError when it is longer than MAX_FRAME.
    """
    header = source.read(_HEADER.size)
    if len(header) < _HEADER.size:
        return None
    channel, length = _HEADER.unpack(header)
    if length > MAX_FRAME:
        raise ValueError(f"read frame: expected at most {MAX_FRAME} bytes, got {length}")
    data = source.read(length)
    return None if len(data) < length else (channel, data)
