"""What netd remembers across restarts and reboots: its MAC address, and its last subnet.

Owns: `<state-dir>/vtep-mac` and reading the old subnet file. Invariant: a file
that is missing or damaged costs only the memory, never the start.
"""

from __future__ import annotations

from ipaddress import IPv4Network
from pathlib import Path

from podlane.api.network import SubnetFile, parse_mac
from podlane.runtime.atomic import write_atomic
from podlane.runtime.log import get_logger

_log = get_logger("netd.state")


class State:
    """The folder is made at the first write."""

    def __init__(self, folder: Path) -> None:
        self._mac_file = folder / "vtep-mac"

    @property
    def mac(self) -> str:
        """The MAC address last used, lower case; empty when there is none."""
        try:
            return parse_mac(self._mac_file.read_text().strip())
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            _log.warning("saved MAC address not usable", path=str(self._mac_file), error=str(error))
            return ""

    @mac.setter
    def mac(self, mac: str) -> None:
        if mac != self.mac:
            write_atomic(self._mac_file, mac + "\n")


def previous_subnet(path: Path) -> IPv4Network | None:
    """The subnet an existing subnet file names; None without one."""
    try:
        return SubnetFile.parse(path.read_text()).subnet
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("old subnet file not usable", path=str(path), error=str(error))
        return None
