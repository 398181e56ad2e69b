"""Letting pod traffic through the host's firewall, and out of the pod network.

Owns: the iptables chain PODLANE-FORWARD and the jump to it, and the nft table
`ip podlane-netd`. Invariants: each is written as a whole in one transaction;
nothing else in any table is read for change or touched. Why iptables for
forwarding: a stock dockerd sets the policy of FORWARD in the table
`ip filter` to DROP, and an accept in another nft table cannot overrule a drop,
so the accept must stand in that very chain. It stands at the top, but behind
jumps to DOCKER-USER, which is where administrators put rules that are to come
first. Why nft for masquerading: a table of our own needs no place among
others' rules. Source: flannel pkg/trafficmngr; iptables(8); nft(8).
"""

from __future__ import annotations

from collections.abc import Callable
from ipaddress import IPv4Network

from podlane.errors import PodlaneError
from podlane.runtime.command import CommandError, run
from podlane.runtime.log import get_logger

CHAIN = "PODLANE-FORWARD"
TABLE = "podlane-netd"
_TIMEOUT = 15.0
_WAIT = "5"  # seconds to wait for the xtables lock

_log = get_logger("netd.firewall")


def forward_restore(listing: str, network: IPv4Network | None) -> str:
    """What to feed to `iptables-restore --noflush`, given `iptables -S`; empty when all is well.

    With `network` None the chain and its jump are removed.
    """
    lines = listing.splitlines()
    jump = f"-A FORWARD -j {CHAIN}"
    forward = [line for line in lines if line.startswith("-A FORWARD ")]
    jumps = forward.count(jump)
    exists = f"-N {CHAIN}" in lines
    have = [line for line in lines if line.startswith(f"-A {CHAIN} ")]
    if network is None:
        if not exists:
            return ""
        return "\n".join(["*filter", *["-D" + jump[2:]] * jumps, f"-F {CHAIN}", f"-X {CHAIN}", "COMMIT", ""])
    want = [f"-A {CHAIN} -s {network} -j ACCEPT", f"-A {CHAIN} -d {network} -j ACCEPT"]
    place = 0
    while place < len(forward) and forward[place] == "-A FORWARD -j DOCKER-USER":
        place += 1
    placed = jumps == 1 and forward.index(jump) <= place
    out: list[str] = []
    if not exists or have != want:
        out += [f":{CHAIN} - [0:0]", *want]
    if not placed:
        out += ["-D" + jump[2:]] * jumps + [f"-I FORWARD {place + 1} -j {CHAIN}"]
    return "\n".join(["*filter", *out, "COMMIT", ""]) if out else ""


def masquerade_script(network: IPv4Network | None) -> str:
    """An nft script that replaces the table in one transaction; `network` None removes it."""
    # adding it first makes deleting it legal when it is not there
    replace = f"add table ip {TABLE}\ndelete table ip {TABLE}\n"
    if network is None:
        return replace
    return (
        f"{replace}"
        f"table ip {TABLE} {{\n"
        f"\tchain postrouting {{\n"
        f"\t\ttype nat hook postrouting priority srcnat; policy accept;\n"
        f"\t\tip saddr {network} ip daddr != {network} ip daddr != 224.0.0.0/4 masquerade fully-random\n"
        f"\t}}\n"
        f"}}\n"
    )


class Firewall:
    """Applies the above. `sync` may be called at any time, from one thread."""

    def __init__(self) -> None:
        self._written = ""
        """How nft lists the table after we wrote it: anything else means that it was changed."""
        self._without_iptables = False

    def sync(self, network: IPv4Network, *, forward: bool, masquerade: bool) -> None:
        """Make both parts as they should be. Raises PodlaneError naming what failed; tries both."""
        errors: list[str] = []
        parts: tuple[tuple[Callable[[IPv4Network | None], None], bool], ...] = (
            (self._sync_forward, forward),
            (self._sync_masquerade, masquerade),
        )
        for part, wanted in parts:
            try:
                part(network if wanted else None)
            except PodlaneError as error:
                errors.append(str(error))
        if errors:
            raise PodlaneError("; ".join(errors))

    def _sync_forward(self, network: IPv4Network | None) -> None:
        try:
            listing = run(["iptables", "-w", _WAIT, "-S"], timeout=_TIMEOUT).stdout
        except CommandError as error:
            if error.returncode is not None or "not found" not in str(error):
                raise
            if not self._without_iptables:
                _log.info("no iptables command here, so no forward rules", error=str(error))
            self._without_iptables = True
            return
        script = forward_restore(listing, network)
        if script:
            run(["iptables-restore", "-w", _WAIT, "--noflush"], input=script, timeout=_TIMEOUT)
            _log.info("forward rules written", network=str(network), chain=CHAIN)

    def _sync_masquerade(self, network: IPv4Network | None) -> None:
        listed = self._list_table()
        if listed == "" if network is None else (listed and listed == self._written):
            return
        run(["nft", "-f", "-"], input=masquerade_script(network), timeout=_TIMEOUT)
        self._written = self._list_table()
        _log.info("masquerade rules written", network=str(network), table=f"ip {TABLE}")

    @staticmethod
    def _list_table() -> str:
        """The table as nft shows it, empty when there is none."""
        done = run(["nft", "list", "table", "ip", TABLE], timeout=_TIMEOUT, check=False)
        if done.returncode == 0:
            return done.stdout
        if "No such file or directory" in done.stderr:
            return ""
        raise PodlaneError(f"list nft table ip {TABLE}: {done.stderr.strip()}")
