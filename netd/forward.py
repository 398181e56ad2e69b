"""The chain PODLANE-FORWARD in the kernel, by the host's own iptables or ip6tables.

Owns: `Forward`, one address family's chain and the jump to it. Invariants: what
is missing is written in one transaction of the table `filter`; no other rule
there is touched. Only the two chains in question are listed: a host may have
thousands of rules for published ports.

iptables-nft keeps its rules in nftables, so when nothing changed there nothing
is listed; iptables-legacy says nothing of changes and is asked each time.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from netd.ruleset import FORWARD_CHAIN, forward_restore
from podlane.api.subnets import Network
from podlane.runtime.command import CommandError, run
from podlane.runtime.log import get_logger

_TIMEOUT = 15.0
_WAIT = "5"  # seconds to wait for the xtables lock
_NO_SUCH_CHAIN = (1, 3)  # exit codes; 3: no such table, as without IPv6. iptables-nft 1.8.9 words 1 as "incompatible"

_log = get_logger("netd.firewall")


class Forward:
    """`program` is `iptables` or `ip6tables`. Not thread-safe."""

    def __init__(self, program: str) -> None:
        self._program = program
        self._kept: tuple[Network, ...] | None = None
        """What was there when we looked last, None when that is not known."""
        self._missing_said = False

    def sync(self, networks: tuple[Network, ...], *, trusted: bool) -> bool:
        """Write what is missing, and return whether anything was. `trusted`: nothing in nftables changed since.

        Raises PodlaneError; the next call must not be `trusted` then.
        """
        found = shutil.which(self._program)
        if found is None:
            if networks and not self._missing_said:
                _log.info("no forward rules: command not found", command=self._program)
                self._missing_said = True
            return False
        in_nftables = "nft" in Path(found).resolve().name
        if self._kept == networks and (not networks or (trusted and in_nftables)):
            return False
        self._kept = None
        chain = self._own_chain()
        script = forward_restore(self._list("FORWARD"), chain, networks) if networks or chain is not None else ""
        if not script:
            self._kept = networks
            return False
        run([f"{self._program}-restore", "-w", _WAIT, "--noflush"], input=script, timeout=_TIMEOUT)
        shown = ",".join(map(str, networks)) or "none"
        _log.info("forward rules written", command=self._program, chain=FORWARD_CHAIN, networks=shown)
        return True

    def _own_chain(self) -> list[str] | None:
        try:
            return self._list(FORWARD_CHAIN)
        except CommandError as error:
            if error.returncode in _NO_SUCH_CHAIN:
                return None
            raise

    def _list(self, chain: str) -> list[str]:
        return run([self._program, "-w", _WAIT, "-S", chain], timeout=_TIMEOUT).stdout.splitlines()
