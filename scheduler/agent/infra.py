"""The infra image: a file system with one program that waits for ever.

Owns: that program, assembled here, so that a node needs neither a registry nor
a compiler to run pods. It is a static ELF file of about 150 bytes that calls
pause(2) in a loop; as process 1 of its namespace it ignores every signal it
has no handler for, so only SIGKILL ends it, which is what the agent sends.
Elsewhere than on x86-64 the node's static busybox does the waiting. Source:
the ELF-64 specification, Kubernetes' build/pause.
"""

from __future__ import annotations

import io
import platform
import struct
import tarfile
from pathlib import Path

from podlane.errors import PodlaneError

_LOAD_ADDRESS = 0x400000
_EHDR = struct.Struct("<16sHHIQQQIHHHHHH")
_PHDR = struct.Struct("<IIQQQQQQ")
_X86_64 = 62
_PAUSE_X86_64 = bytes.fromhex("b8220000000f05ebf7")  # mov eax, 34 (pause); syscall; jmp to the start

_BUSYBOX = Path("/bin/busybox")


def image_archive(machine: str = "") -> tuple[bytes, tuple[str, ...]]:
    """A tar archive of the image's files, and the command to run in it.

    `machine` is as uname gives it, default this one's. Raises PodlaneError.
    """
    machine = machine or platform.machine()
    if machine == "x86_64":
        return _archive("pause", pause_program()), ("/pause",)
    try:
        program = _BUSYBOX.read_bytes()
    except OSError as error:
        raise PodlaneError(f"build infra image for {machine}: {_BUSYBOX}: {error.strerror}") from error
    return _archive("busybox", program), ("/busybox", "tail", "-f", "/dev/null")


def pause_program() -> bytes:
    """A static x86-64 executable that waits for ever."""
    size = _EHDR.size + _PHDR.size
    ident = b"\x7fELF" + bytes([2, 1, 1])  # 64 bits, little endian, version 1
    header = _EHDR.pack(
        ident, 2, _X86_64, 1, _LOAD_ADDRESS + size, _EHDR.size, 0, 0, _EHDR.size, _PHDR.size, 1, 0, 0, 0
    )
    total = size + len(_PAUSE_X86_64)
    # one segment, readable and executable, that is the whole file
    segment = _PHDR.pack(1, 5, 0, _LOAD_ADDRESS, _LOAD_ADDRESS, total, total, 0x1000)
    return header + segment + _PAUSE_X86_64


def _archive(name: str, program: bytes) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        info = tarfile.TarInfo(name)
        info.size, info.mode = len(program), 0o755
        archive.addfile(info, io.BytesIO(program))
    return buffer.getvalue()
