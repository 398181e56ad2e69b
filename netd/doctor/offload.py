"""Which offload features an interface has switched on.

Owns: ethtool's three feature requests, sent as ioctls, because the command is
not installed everywhere. Nothing is changed. Source: linux/ethtool.h.
"""

from __future__ import annotations

import fcntl
import socket
import struct
from array import array

TUNNEL_CHECKSUM = "tx-udp_tnl-csum-segmentation"
CHECKSUM = "tx-checksum-ip-generic"

_SIOCETHTOOL = 0x8946
_GSTRINGS, _GSSET_INFO, _GFEATURES = 0x1B, 0x37, 0x3A
_SS_FEATURES = 4
_STRING = 32  # ETH_GSTRING_LEN


def features(interface: str) -> dict[str, bool] | None:
    """Feature names, and whether each is on; None when the interface does not tell."""
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as s:
            asked = _ask(s, interface, struct.pack("=IIQI", _GSSET_INFO, 0, 1 << _SS_FEATURES, 0))
            (count,) = struct.unpack_from("=I", asked, 16)
            listed = _ask(s, interface, struct.pack("=III", _GSTRINGS, _SS_FEATURES, count) + bytes(_STRING * count))
            blocks = (count + 31) // 32
            active = _ask(s, interface, struct.pack("=II", _GFEATURES, blocks) + bytes(16 * blocks))
    except OSError:
        return None
    names = [listed[12 + i * _STRING :][:_STRING].split(b"\0")[0].decode() for i in range(count)]
    words = [struct.unpack_from("=I", active, 8 + 16 * block + 8)[0] for block in range(blocks)]
    return {name: bool(words[i // 32] >> i % 32 & 1) for i, name in enumerate(names) if name}


def _ask(s: socket.socket, interface: str, request: bytes) -> bytes:
    """Raises OSError."""
    buffer = array("B", request)
    address, _ = buffer.buffer_info()
    fcntl.ioctl(s, _SIOCETHTOOL, struct.pack("16sP16x", interface.encode(), address))
    return buffer.tobytes()
