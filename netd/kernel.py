"""The kernel netd programs: observe it, apply a plan to it, hear of changes.

Owns: what netd does to the kernel and when it looks. Invariants: an
observation is a dump, or what is known to be the same (memory.py); `apply`
takes steps in the plan's order, stops at a step of a device's that fails
(everything rests on the device), goes on past a sysctl or an entry that fails,
and names all failures in one ApplyError. fake.py is the same in memory; one
contract suite holds both.

Links and addresses are made through pyroute2 (links.py), which is loaded when
there is something to make. Routes, neighbours and FDB entries, of which there
is one each per peer, go through podlane.runtime.netlink in bulk: pyroute2
needs 0.3 ms or more for one.
"""

from __future__ import annotations

import errno
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from netd import dump
from netd import plan as p
from netd import rtlink as rl
from netd import rtnetlink as rt
from netd.held import Asked
from netd.memory import Memory
from netd.model import Actual, Interface, LinkState
from podlane.api.subnets import Address, Network
from podlane.errors import ApplyError, PodlaneError
from podlane.runtime.netlink import Message, NetlinkError

_LISTEN = 1.0  # seconds a stop may go unnoticed
_BACKLOG = 32 << 20  # bytes: the 15,000 notifications of 5,000 new peers take half of it

_GROUPS = (
    rl.GROUP_LINK,
    rl.GROUP_IPV4_IFADDR,
    rl.GROUP_IPV6_IFADDR,
    rl.GROUP_IPV4_NETCONF,
    rl.GROUP_IPV6_NETCONF,
    rt.GROUP_NEIGH,
    rt.GROUP_IPV4_ROUTE,
    rt.GROUP_IPV6_ROUTE,
)


class Kernel(Protocol):
    """What netd needs of a kernel. Used from one thread, but for `listen`."""

    def interfaces(self) -> tuple[Interface, ...]:
        """Every link with its addresses. Raises PodlaneError."""
        ...

    def interface(self, name: str) -> Interface | None:
        """One link with its addresses, but not its default routes: cheap, however many others there are.

        Raises PodlaneError.
        """
        ...

    def route_to(self, address: Address) -> str:
        """The interface a packet to `address` would leave by, or the one that has that address.

        Empty when it cannot be sent. Raises PodlaneError.
        """
        ...

    def link(self, name: str) -> LinkState | None:
        """One link, None when there is none of that name: cheap, however many others there are. Raises PodlaneError."""
        ...

    def observe(
        self, devices: Collection[str], networks: Collection[Network], sysctls: Collection[str], *, verify: bool = True
    ) -> Actual:
        """What there is of `devices`, of the routes into `networks`, and of `sysctls` (paths below /proc/sys).

        Without `verify` it may be what was seen last and what `apply` has done since, as long as `listen`
        runs and has heard of nothing else. Raises PodlaneError.
        """
        ...

    def apply(self, plan: p.Plan) -> None:
        """Carry out the steps in order. Raises ApplyError."""
        ...

    def listen(
        self, names: Callable[[], Collection[str]], on_change: Callable[[], None], stop: threading.Event
    ) -> None:
        """Call `on_change` whenever something netd looks at may have changed, until `stop`.

        That is what the last observation covers, but for what `apply` did itself, and the links of `names`,
        which is called from here and from `observe`. Other links are no concern: each pod that starts or ends
        brings some twenty notifications.
        """
        ...


class LinuxKernel:
    """The kernel of the network namespace this thread is in.

    `backlog`: bytes of the kernel's memory that notifications may take until `listen` reads them.
    """

    def __init__(self, *, backlog: int = _BACKLOG) -> None:
        self._memory = Memory()
        self._backlog = backlog

    @property
    def remembers(self) -> bool:
        """Whether the last observation, repeated without `verify`, would be answered from memory."""
        return self._memory.valid

    def interfaces(self) -> tuple[Interface, ...]:
        with dump.open_socket() as nl:
            return dump.interfaces(nl)

    def interface(self, name: str) -> Interface | None:
        with dump.open_socket() as nl:
            link = dump.find_link(nl, name)
            return dump.interface(link, dump.addresses(nl, link.index)) if link is not None else None

    def route_to(self, address: Address) -> str:
        with dump.open_socket() as nl:
            return dump.route_to(nl, address)

    def link(self, name: str) -> LinkState | None:
        with dump.open_socket() as nl:
            link = dump.find_link(nl, name)
        return LinkState(link.kind, link.mtu, link.up, link.mac) if link is not None else None

    def observe(
        self, devices: Collection[str], networks: Collection[Network], sysctls: Collection[str], *, verify: bool = True
    ) -> Actual:
        asked = Asked(frozenset(devices), tuple(networks))
        values = dump.sysctls(sysctls)
        if not verify and (known := self._memory.recall(asked, values)) is not None:
            return known
        with dump.open_socket() as nl:
            return self._memory.learn(partial(dump.held, nl, asked), values)

    def apply(self, plan: p.Plan) -> None:
        failures: list[tuple[str, Exception]] = []
        if plan.device_steps:
            self._memory.doubt()
        for device_step in plan.device_steps:
            try:
                _device_step(device_step)
            except (OSError, PodlaneError) as error:
                failures.append((str(device_step), error))
                if not isinstance(device_step, p.SetSysctl):
                    raise ApplyError(failures) from error
        if plan.entry_steps:
            try:
                failures += self._apply_entries(plan.entry_steps)
            except BaseException:  # whatever stopped it, some of it may have been done
                self._memory.doubt()
                raise
        if failures:
            self._memory.doubt()
            raise ApplyError(failures)

    def _apply_entries(self, wanted: Sequence[p.EntryStep]) -> list[tuple[str, Exception]]:
        failures: list[tuple[str, Exception]] = []
        steps: list[p.EntryStep] = []
        messages: list[Message] = []
        indexes = _Indexes()
        for step in wanted:
            try:
                messages.append(_MESSAGES[type(step)](step, indexes))
            except OSError as error:
                failures.append((str(step), error))
                continue
            steps.append(step)
        with dump.open_socket() as nl:
            self._memory.expect(steps, indexes)
            for failure in nl.batch(messages):
                step = steps[failure.index]
                if not _gone(step, failure.errno):
                    failures.append((str(step), NetlinkError(str(failure), failure.errno)))
        return failures

    def listen(
        self, names: Callable[[], Collection[str]], on_change: Callable[[], None], stop: threading.Event
    ) -> None:
        with (
            dump.open_socket(*_GROUPS, receive_buffer=self._backlog) as nl,
            self._memory.listening(names, on_change),
        ):
            on_change()  # what happened before the socket was there
            while not stop.is_set():
                try:
                    events = nl.receive(_LISTEN)
                except NetlinkError as error:
                    if error.errno != errno.ENOBUFS:
                        raise
                    self._memory.doubt()
                    on_change()  # some were lost: look at everything
                    continue
                if events and self._memory.heard(events):
                    on_change()


class _Indexes(dict[str, int]):
    """Interfaces' indexes by name, each looked up once; 0 for no name. Raises OSError (ENODEV)."""

    def __missing__(self, name: str) -> int:
        self[name] = rl.index_of(name) if name else 0
        return self[name]


def _device_step(step: p.DeviceStep) -> None:
    if isinstance(step, p.SetSysctl):
        (dump.SYSCTLS / step.path).write_text(f"{step.value}\n")
        return
    from netd.links import open_links

    with open_links() as on:
        match step:
            case p.CreateDevice(device):
                on.add_vxlan(device)
            case p.DeleteDevice(name):
                on.delete(name)
            case p.SetMac(name, mac):
                on.set_mac(name, mac)
            case p.SetMtu(name, mtu):
                on.set_mtu(name, mtu)
            case p.SetUp(name):
                on.set_up(name)
            case p.AddAddress(name, address):
                on.add_address(name, address)
            case p.DeleteAddress(name, address):
                on.delete_address(name, address)


_MESSAGES: Mapping[type, Callable[[Any, Mapping[str, int]], Message]] = {
    p.SetFdb: lambda step, indexes: rt.replace_fdb(indexes[step.name], step.mac, step.entry),
    p.DeleteFdb: lambda step, indexes: rt.delete_fdb(indexes[step.name], step.mac, step.entry),
    p.SetNeighbour: lambda step, indexes: rt.replace_neighbour(indexes[step.name], step.address, step.neighbour),
    p.DeleteNeighbour: lambda step, indexes: rt.delete_neighbour(indexes[step.name], step.address),
    p.SetRoute: lambda step, indexes: rt.replace_route(step.destination, step.route, indexes[step.route.device]),
    p.DeleteRoute: lambda step, indexes: rt.delete_route(step.destination, step.route, indexes[step.route.device]),
    p.AddBlackhole: lambda step, _: rt.replace_blackhole(step.destination),
    p.DeleteBlackhole: lambda step, _: rt.delete_blackhole(step.destination),
}


def _gone(step: p.Step, number: int) -> bool:
    """Whether a removal failed because there is nothing to remove any more."""
    removal = isinstance(step, p.DeleteFdb | p.DeleteNeighbour | p.DeleteRoute | p.DeleteBlackhole)
    return removal and number in (errno.ENOENT, errno.ESRCH)
