"""The pod network as the agent's sync sees it: usable or why not, who is on it, which address is next.

Owns: the order of looking. The ports are listed before the containers are, so a
port that belongs to no running container of that later list is nobody's.
Invariants: the network outlives its file, for netd writes it anew while it
restarts; an address is given to one pod only, also while its container is still
being made (`reserve`); what cannot be listed is not concluded from. For the
sync's thread only, but `is_missed`.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import replace
from pathlib import Path

from podlane.runtime.clock import Clock
from podlane.runtime.log import get_logger
from scheduler.agent import containers as c
from scheduler.agent.addresses import Addresses
from scheduler.agent.network import NetworkSpec, NoSubnet, contains, read_subnet_file
from scheduler.agent.podnet import BRIDGE, Plug, PodNet, PodNetError, Port, is_attached, link_of, strays
from scheduler.agent.runtime import Record

_SUBNET_POLL = 0.5
_RETRY = 1.0
_SWEEP = 30.0


class NodeNetwork:
    """`look_again(seconds)` asks for another sync; `node_ips` are what pods on the node's own network have."""

    def __init__(
        self,
        podnet: PodNet,
        subnet_file: Path,
        *,
        look_again: Callable[[float], None],
        clock: Clock,
        node_ips: tuple[str, ...] = (),
    ) -> None:
        self._podnet = podnet
        self._node_ips = node_ips
        self._subnet_file = subnet_file
        self._look_again = look_again
        self._clock = clock
        self._ports: dict[str, Port] = {}
        self._plugs: frozenset[str] = frozenset()
        self._live: frozenset[str] = frozenset()
        self._reserved: dict[str, str] = {}
        self._last = ""
        self._sweep_at = clock.monotonic()
        self._log = get_logger("agent")
        self.spec: NetworkSpec | None = None
        self.problem = "no sync yet"
        """Why no pod can be given a network now; "" when it can."""

    @property
    def subnets(self) -> tuple[str, ...]:
        """The leased subnet of each family, none if not known."""
        return tuple(segment.subnet for segment in self.spec.segments) if self.spec else ()

    def look(self) -> None:
        """Make the bridge right, then list who is attached. Raises PodNetError when that cannot be told."""
        try:
            self.spec = read_subnet_file(self._subnet_file)
        except NoSubnet as error:
            if self.spec is None:
                self.problem = str(error)
                self._look_again(_SUBNET_POLL)
        if self.spec is not None:
            self._make_bridge(self.spec)
        self._ports = self._podnet.ports()
        if self._clock.monotonic() >= self._sweep_at:
            self._plugs = self._podnet.plugs()

    def _make_bridge(self, spec: NetworkSpec) -> None:
        try:
            changes = self._podnet.ensure(spec)
        except PodNetError as error:
            if str(error) != self.problem:
                self._log.warning("network not ready", error=str(error), retry_in=_RETRY)
            self.problem = str(error)
            self._look_again(_RETRY)
            return
        self.problem = ""
        if changes:
            self._log.info("bridge made right", subnet=spec.subnet, mtu=spec.mtu, commands=[str(x) for x in changes])

    def with_addresses(self, records: Collection[Record]) -> tuple[Record, ...]:
        """The records, those of attached infra containers with their addresses."""
        self._live = frozenset(link_of(r.id) for r in records if _is_live_infra(r))
        return tuple(map(self._with_address, records))

    def _with_address(self, record: Record) -> Record:
        if not _is_live_infra(record):
            return record
        if c.is_on_host(record):
            return replace(record, ip=self._node_ips[0], ips=self._node_ips) if self._node_ips else record
        if self._is_attached(record):
            return replace(record, ip=c.pod_ip(record), ips=self._ports[link_of(record.id)].ips)
        return record

    def is_missed(self, link: str) -> bool:
        """Whether a link that is gone ought to be there. From any thread."""
        return link == BRIDGE or link in self._live

    def _is_attached(self, record: Record) -> bool:
        ip = c.pod_ip(record)
        if not ip:
            return False
        if self.spec is None:  # not known after a restart: what was plugged in then goes on being so
            port = self._ports.get(link_of(record.id))
            return port is not None and port.up and port.alias.startswith(f"{ip}/")
        return is_attached(Plug(record.id, ip, self.spec), self._ports)

    def stale(self, records: Collection[Record]) -> frozenset[str]:
        """Infra containers with an address outside the leased subnet: no route leads to them any more."""
        spec = self.spec
        if spec is None:
            return frozenset()
        plugged = [r for r in records if _is_live_infra(r) and not c.is_on_host(r)]
        return frozenset(r.id for r in plugged if not contains(spec, c.pod_ip(r)))

    def addresses(self, records: Collection[Record], busy: Collection[str]) -> Addresses | None:
        """What may be handed out now; None while the network is not known.

        `busy` are the pods (UIDs) being worked on before `records` were listed:
        what others had reserved shows in their containers by now.
        """
        if self.spec is None:
            return None
        self._reserved = {uid: ip for uid, ip in self._reserved.items() if uid in busy}
        infra = [r for r in records if c.pod_ip(r)]
        if not self._last:
            self._last = c.pod_ip(max(infra, key=lambda r: r.created_at)) if infra else ""
        used = frozenset(map(c.pod_ip, infra)) | frozenset(self._reserved.values())
        return Addresses(self.spec, used, self._last)

    def reserve(self, uid: str, ip: str) -> None:
        """A container with this address is about to be made for the pod."""
        self._reserved[uid] = self._last = ip

    def sweep(self, records: Collection[Record]) -> None:
        """Now and then, delete the links of containers that run no more. (The kernel does, but for held namespaces.)"""
        now = self._clock.monotonic()
        if now < self._sweep_at:
            return
        self._sweep_at = now + _SWEEP
        unknown = strays(self._plugs, [r.id for r in records if _is_live_infra(r)])
        if not unknown:
            return
        try:
            self._podnet.detach(unknown)
        except PodNetError as error:
            self._log.warning("stray links not deleted", error=str(error), retry_in=_SWEEP)
            return
        self._log.info("stray links deleted", links=sorted(unknown))


def _is_live_infra(record: Record) -> bool:
    return record.running and c.container_name(record) == c.INFRA
