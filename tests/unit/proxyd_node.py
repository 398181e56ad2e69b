"""One node over fakes: its store, kernel, conntrack and host, and a proxyd that can be killed and started again."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from proxyd_objects import (
    POD_NETWORK,
    POD_NETWORK6,
    SERVICE_RANGE,
    SERVICE_RANGE6,
    VIP,
    ListSource,
    addresses,
    frontend,
)

from podlane.api.types import EndpointSlice, Service
from podlane.errors import PodlaneError
from podlane.runtime.clock import FakeClock
from proxyd.fake import FakeNft
from proxyd.healthcheck import ServiceHealth
from proxyd.plane import RETIRE_AFTER
from proxyd.proxy import Outlets, Proxy
from proxyd.tables import ADDRESSES, ENDPOINTS, FAMILIES, IPV4, PICKS, Family, Frontend, Key, Target, pack_mark

WEB, DNS = frontend(f"{VIP}:80"), frontend(f"{VIP}:53/UDP")


def slot(number: int, at: Key = WEB) -> Key:
    """A frontend's slot."""
    return at + pack_mark(number)


class FakeConntrack:
    def __init__(self) -> None:
        self.calls: list[tuple[dict[str, set[str]], tuple[str, ...]]] = []
        self.fail = False

    def clean(self, wanted: Mapping[Frontend, Collection[Target]], ranges: Sequence[str] = ()) -> int:
        if self.fail:
            raise PodlaneError("list conntrack: deadline passed")
        self.calls.append(({str(each): set(map(str, targets)) for each, targets in wanted.items()}, tuple(ranges)))
        return 0

    def close(self) -> None:
        """Nothing to give back."""


class FakeHost:
    def __init__(self) -> None:
        self.calls: list[tuple[tuple[str, ...], bool]] = []

    def ensure(self, service_ranges: Sequence[str], *, ipv6: bool) -> list[str]:
        self.calls.append((tuple(service_ranges), ipv6))
        return []


class World:
    """One node. `told`: what the kernel's refusals were told of, as (service, message)."""

    def __init__(self) -> None:
        self.source, self.nft, self.conntrack, self.host = ListSource(), FakeNft(), FakeConntrack(), FakeHost()
        self.clock = FakeClock()
        self.triggers: list[float] = []
        self.told: list[tuple[str, str]] = []
        self.acknowledged: list[tuple[int, bool]] = []
        self.health: dict[int, ServiceHealth] = {}
        self.lost_addresses: PodlaneError | None = None
        self.start()

    @classmethod
    def dual(cls) -> World:
        """A node of a cluster with both families."""
        world = cls()
        world.source.pod_networks = (POD_NETWORK, POD_NETWORK6)
        world.source.service_ranges = (SERVICE_RANGE, SERVICE_RANGE6)
        return world

    def start(self) -> None:
        """A new process. Also what ends the old one: it is not asked anything any more."""
        self.nft.restart_proxyd()
        self.proxy = Proxy(
            source=self.source,
            nft=self.nft,
            conntrack=self.conntrack,
            host=self.host,
            node="node1",
            clock=self.clock,
            trigger_after=self.triggers.append,
            node_addresses=self._node_addresses,
            outlets=Outlets(
                applied=lambda revision, terminating: self.acknowledged.append((revision, terminating)),
                left_out=lambda service, message: self.told.append((service.metadata.name, message)),
                health=lambda ports, _: self.health.update(ports),
            ),
        )

    def _node_addresses(self, internal_ips: tuple[str, ...]) -> tuple[str, ...]:
        if self.lost_addresses is not None:
            raise self.lost_addresses
        return internal_ips

    def sync(self, *objects: Service | EndpointSlice) -> None:
        self.source.put(*objects)
        self.proxy.sync()

    def settle(self) -> None:
        """Let time pass until everything that was left for later is done."""
        self.clock.advance(RETIRE_AFTER)
        self.proxy.sync()

    def served(self, at: Key = WEB, family: Family = IPV4) -> set[str]:
        """The addresses behind a frontend, for clients inside."""
        tables = self.nft.kernel[family]
        pick = tables.picks(at)[0]
        if pick is None:
            return set()
        values = [tables[PICKS if pick.affinity else ENDPOINTS][at + pack_mark(slot)] for slot in range(pick.slots)]
        found = [tables[ADDRESSES][value] if pick.affinity else value for value in values]  # type: ignore[index]
        return addresses(value[:-4] for value in found if isinstance(value, bytes))

    def committed(self) -> list[str]:
        """What was committed since the last call, as text."""
        lines = [line for each in self.nft.commits for line in each.lines()]
        self.nft.commits.clear()
        for family in FAMILIES:
            lines = [line.replace(f"element {family.name} podlane ", "") for line in lines]
        return [line for line in lines if " rule " not in line]
