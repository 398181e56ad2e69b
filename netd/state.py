"""What netd remembers across restarts and reboots by itself: its devices' MAC addresses, and its last subnets.

Owns: `<state-dir>/vtep-mac` and `vtep-mac-v6`, and reading the old subnet file.
What it remembers of the network is cache.py's. Invariant: a file that is
missing or damaged costs only the memory, never the start.
"""

from __future__ import annotations

from pathlib import Path

from podlane.api.subnets import SubnetFile, Subnets, parse_mac
from podlane.runtime.atomic import write_atomic
from podlane.runtime.log import get_logger

_log = get_logger("netd.state")


class State:
    """The folder is made at the first write. `read_only`: for a look at it, nothing is written.

    A host has at most two VXLAN devices: the one that carries IPv4 (perhaps
    IPv6 as well), `flannel.<VNI>`, and the one that carries IPv6 alone,
    `flannel-v6.<VNI>`.
    """

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self._folder = folder
        self._read_only = read_only

    def mac(self, *, v6: bool) -> str:
        """The MAC address last used by the device for IPv4, or for IPv6 alone; lower case, empty when there is none."""
        file = self._file(v6)
        try:
            return parse_mac(file.read_text().strip())
        except FileNotFoundError:
            return ""
        except (OSError, ValueError) as error:
            _log.warning("saved MAC address not usable", path=str(file), error=str(error))
            return ""

    def set_mac(self, mac: str, *, v6: bool) -> None:
        """Remember it. Raises PodlaneError when it cannot be written."""
        if not self._read_only and mac != self.mac(v6=v6):
            write_atomic(self._file(v6), mac + "\n")

    def _file(self, v6: bool) -> Path:
        return self._folder / ("vtep-mac-v6" if v6 else "vtep-mac")


def previous_subnets(path: Path) -> Subnets | None:
    """The subnets an existing subnet file names; None without one."""
    try:
        return SubnetFile.parse(path.read_text()).subnets
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        _log.warning("old subnet file not usable", path=str(path), error=str(error))
        return None
