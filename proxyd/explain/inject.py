"""Putting a packet onto the way it really takes: where packets from its source arrive, and its arrival there.

Owns: finding that way, and the two means. A packet from this host is sent with
a raw socket, and goes through the output hook as any connection of its own. One
from elsewhere is let arrive at the very link by which packets from its source
come in: the link the route to the source points to and, behind a bridge, the
port at which the bridge knows the source. It takes all that follows there:
rp_filter, bridge netfilter, every table's prerouting.

The means is the kernel's test run of an XDP program with live frames (Linux
5.18): a program of two instructions that lets everything pass, run once on our
frame as if the link had received it. It is attached to nothing, so nothing can
be left behind. A packet socket cannot do this (it sends, and does not receive),
and a veth pair of our own would have another name and pass other rules.

Not the same as a real packet: a source behind a bridge that the bridge has not
heard yet arrives at the bridge itself; a source with another way here than back
arrives by the way back; XDP programs and tc filters of the link are not passed
if they work before the stack. A destination on the same bridge is reached
through this host, not directly.
Source: linux/net/bpf/test_run.c (bpf_test_run_xdp_live); bpf(2), raw(7).
"""

from __future__ import annotations

import ctypes
import errno
import json
import os
import platform
import random
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from podlane.errors import PodlaneError
from podlane.runtime import command
from proxyd.explain import frames
from proxyd.explain.frames import Ends

_TIMEOUT = 10.0
_SYSCALL = {"x86_64": 321, "aarch64": 280, "riscv64": 280, "ppc64le": 361, "s390x": 351}  # bpf(2)
_PROG_LOAD, _PROG_TEST_RUN = 5, 10
_TYPE_XDP = 6
_LIVE_FRAMES = 1 << 1
_PASS = struct.pack("=BBhiBBhi", 0xB7, 0, 0, 2, 0x95, 0, 0, 0)  # r0 = XDP_PASS; exit
_IPV6_HDRINCL = 36


@dataclass(frozen=True, slots=True)
class Entry:
    """Where a packet comes in. `link` "" means from this host itself."""

    link: str = ""
    bridge: str = ""
    to: bytes = bytes(6)
    sender: bytes = bytes(6)

    def __str__(self) -> str:
        if not self.link:
            return "sent by this host"
        behind = f", a port of bridge {self.bridge}" if self.bridge and self.bridge != self.link else ""
        return f"arriving at {self.link}{behind}"


def entry_of(source: str) -> Entry:
    """Where packets from the address come in. Raises PodlaneError when there is no way back to it."""
    family = "-6" if ":" in source else "-4"
    try:
        routes = _json(["ip", "-j", family, "route", "get", source])
    except command.CommandError as error:
        raise PodlaneError(f"find where packets from {source} arrive: no route leads to it") from error
    route = routes[0] if routes else {}
    name = str(route.get("dev", ""))
    if route.get("type") == "local" or name == "lo":
        return Entry()
    if not name:
        raise PodlaneError(f"find where packets from {source} arrive: no route leads to it")
    link = _json(["ip", "-j", "-d", "link", "show", "dev", name])[0]
    to = _mac(link.get("address", ""))
    neighbour = str(route.get("gateway", source))
    known = _json(["ip", "-j", family, "neigh", "show", neighbour, "dev", name])
    sender = _mac(known[0].get("lladdr", "") if known else "")
    if link.get("linkinfo", {}).get("info_kind") != "bridge":
        return Entry(name, "", to, sender if any(sender) else _made_up())
    for learnt in _json(["bridge", "-j", "fdb", "show", "br", name]) if any(sender) else ():
        if learnt.get("mac") == known[0]["lladdr"] and learnt.get("ifname") != name:
            return Entry(str(learnt["ifname"]), name, to, sender)
    return Entry(name, name, to, _made_up())


def inject(ends: Ends, entry: Entry) -> None:
    """Let the first packet of a connection take its way. Raises PodlaneError.

    When it returns, the packet has passed all hooks, unless it waits in a queue on its way to another link.
    """
    packed = frames.packet(ends, number=random.getrandbits(31) | 1)
    if entry.link:
        _arrive(frames.frame(packed, to=entry.to, sender=entry.sender), entry.link)
    else:
        _send(packed, ends)


def _send(packed: bytes, ends: Ends) -> None:
    six = ends.width == 16
    try:
        with socket.socket(socket.AF_INET6 if six else socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_RAW) as raw:
            if six:
                raw.setsockopt(socket.IPPROTO_IPV6, _IPV6_HDRINCL, 1)
            raw.sendto(packed, (ends.destination, 0))
    except OSError as error:
        # what a rule drops or rejects is told to the sender so, and the trace tells by which rule
        if error.errno not in {errno.EPERM, errno.ECONNREFUSED}:
            raise PodlaneError(f"send from {ends.source} to {ends.destination}: {_words(error)}") from error


def _arrive(data: bytes, link: str) -> None:
    try:
        index = socket.if_nametoindex(link)
        program = _load()
        try:
            _test_run(program, data, index)
        finally:
            os.close(program)
    except OSError as error:
        raise PodlaneError(
            f"let a packet arrive at {link}: {_words(error)} (needs root, and Linux 5.18 or later)"
        ) from error


def _load() -> int:
    code = ctypes.create_string_buffer(_PASS, len(_PASS))
    license_ = ctypes.create_string_buffer(b"GPL")
    attributes = struct.pack(
        "=IIQQIIQII16s", _TYPE_XDP, 2, ctypes.addressof(code), ctypes.addressof(license_), 0, 0, 0, 0, 0, b"podlane"
    )
    return _bpf(_PROG_LOAD, attributes)


def _test_run(program: int, data: bytes, link: int) -> None:
    held = ctypes.create_string_buffer(data, len(data))
    context = struct.pack("=6I", 0, len(data), 0, link, 0, 0)  # struct xdp_md
    held_context = ctypes.create_string_buffer(context, len(context))
    attributes = struct.pack(
        "=IIIIQQIIIIQQIII",
        *(program, 0, len(data), 0, ctypes.addressof(held), 0, 1, 0),
        *(len(context), 0, ctypes.addressof(held_context), 0, _LIVE_FRAMES, 0, 1),
    )
    _bpf(_PROG_TEST_RUN, attributes)


def _bpf(operation: int, attributes: bytes) -> int:
    number = _SYSCALL.get(platform.machine())
    if number is None:
        raise OSError(errno.ENOSYS, f"the number of bpf(2) on {platform.machine()} is not known")
    libc = ctypes.CDLL(None, use_errno=True)
    held = ctypes.create_string_buffer(attributes, len(attributes))
    result = int(libc.syscall(number, operation, held, len(attributes)))
    if result < 0:
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    return result


def _mac(text: str) -> bytes:
    with suppress(ValueError):
        packed = bytes.fromhex(text.replace(":", ""))
        if len(packed) == 6:
            return packed
    return bytes(6)  # of a link without such addresses


def _made_up() -> bytes:
    return b"\x02" + random.randbytes(5)  # locally administered: nobody's


def _words(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _json(argv: list[str]) -> list[dict[str, Any]]:
    text = command.run(argv, timeout=_TIMEOUT).stdout.strip()
    return list(json.loads(text)) if text else []
