"""The table `inet podlane-netd` in the kernel.

Owns: `NftTable`, which loads the table as a whole through the `nft` command,
one transaction, and changes the guard's sources by netlink messages of our own,
so that one change costs one element. Invariant: what it believes to be there
was listed, or written by it, at a generation the caller vouches for; otherwise it
lists the table (the sources as bytes, 5,000 in some milliseconds) before it decides.

Chains and rules are not parsed back: right is what the kernel listed after we
wrote them, byte for byte.
"""

from __future__ import annotations

from ipaddress import ip_address

from netd.ruleset import DROPPED, NOTHING, SOURCES, TABLE, FirewallRules, sorted_sources, table_chains, table_script
from podlane.api.subnets import Address
from podlane.errors import PodlaneError
from podlane.runtime import command, nftables
from podlane.runtime.log import get_logger
from podlane.runtime.netlink import NetlinkSocket

_TIMEOUT = 15.0
_OURS = nftables.Table(nftables.NFPROTO_INET, TABLE)
_FIRST_VERSIONS = nftables.Table(nftables.NFPROTO_IPV4, TABLE)

_SHOWN = 3

_log = get_logger("netd.firewall")

Listing = tuple[bool, dict[str, bytes], dict[str, list[bytes]]]
"""Whether the first version's table is there; the chains of ours, and their rules, as bytes to be compared."""


class NftTable:
    """What this process knows of the table. Not thread-safe."""

    def __init__(self) -> None:
        self._skeleton: FirewallRules | None = None
        """What was loaded, None when that is not, or may not be, what is there."""
        self._listed: Listing | None = None
        """Chains and rules as the kernel lists them since."""
        self._sources: frozenset[Address] = frozenset()
        self._packed: list[bytes] = []
        """The listing that was last found to be `_sources`; empty when none was since these changed."""

    def sync(self, socket: NetlinkSocket, rules: FirewallRules, *, trusted: bool) -> bool:
        """Write what is missing, and return whether anything was. `trusted`: nothing changed since the last time.

        Raises PodlaneError; the next call must not be `trusted` then.
        """
        if not trusted:
            self._look(socket)
        skeleton = rules.skeleton if table_chains(rules) else NOTHING
        if skeleton != self._skeleton:
            self._load(socket, rules, skeleton)
            return True
        if rules.sources == self._sources:
            return False
        self._change(socket, rules.sources)
        return True

    def dropped(self, socket: NetlinkSocket) -> int:
        return nftables.counter(socket, _OURS, DROPPED)

    def _look(self, socket: NetlinkSocket) -> None:
        listed = _list(socket)
        if listed is None:
            self._skeleton, self._sources = NOTHING, frozenset()
        elif listed != self._listed:
            self._skeleton = None
        elif self._skeleton is not None and self._skeleton.guard is not None:
            self._look_at_sources(socket)

    def _look_at_sources(self, socket: NetlinkSocket) -> None:
        packed = [
            bytes(nftables.packed_elements(body))
            for name in SOURCES.values()
            for body in nftables.listing(socket, _OURS.list_elements(name))
        ]
        if packed == self._packed:
            return  # the same bytes as last time: nobody changed a source
        known = {source.packed: source for source in self._sources}
        there = {key for part in packed for key in nftables.keys(part)}
        if there != known.keys():
            self._sources = frozenset(known.get(key) or ip_address(key) for key in there)
        self._packed = packed

    def _load(self, socket: NetlinkSocket, rules: FirewallRules, skeleton: FirewallRules) -> None:
        self._skeleton = None
        command.run(["nft", "-f", "-"], input=table_script(rules), timeout=_TIMEOUT)
        chains = table_chains(rules)
        _log.info("nft table written", table=f"inet {TABLE}", chains=",".join(chains), sources=len(rules.sources))
        self._listed = _list(socket)
        if _counts(self._listed) != {name: len(rows) - 1 for name, rows in chains.items()}:
            return  # somebody was quicker than we could look: write it again
        self._skeleton, self._sources, self._packed = skeleton, rules.sources, []

    def _change(self, socket: NetlinkSocket, wanted: frozenset[Address]) -> None:
        added, removed = wanted - self._sources, self._sources - wanted
        messages = [nftables.BEGIN]
        for kind, sources in ((nftables.DELSETELEM, removed), (nftables.NEWSETELEM, added)):
            for version, name in SOURCES.items():
                packed = [nftables.element(source.packed) for source in sources if source.version == version]
                messages += [message for message, _ in _OURS.change_elements(kind, name, packed)]
        failures = nftables.commit(socket, [*messages, nftables.END])
        if failures:
            raise PodlaneError(f"change vxlan sources {_shown(added, removed)}: {failures[0]}")
        self._sources, self._packed = wanted, []
        _log.info("vxlan sources changed", added=len(added), removed=len(removed), sources=len(wanted))


def _list(socket: NetlinkSocket) -> Listing | None:
    """None when there is no table of ours."""
    ours, old = nftables.exists(socket, _OURS), nftables.exists(socket, _FIRST_VERSIONS)
    if not ours and not old:
        return None
    return old, nftables.chains(socket, _OURS), nftables.rules(socket, _OURS)


def _counts(listed: Listing | None) -> dict[str, int]:
    """How many rules each chain has."""
    if listed is None:
        return {}
    _, chains, rules = listed
    return {name: len(rules.get(name, ())) for name in chains}


def _shown(added: frozenset[Address], removed: frozenset[Address]) -> str:
    changes = [f"+{source}" for source in sorted_sources(added)] + [f"-{source}" for source in sorted_sources(removed)]
    more = f" and {len(changes) - _SHOWN} more" if len(changes) > _SHOWN else ""
    return " ".join(changes[:_SHOWN]) + more
