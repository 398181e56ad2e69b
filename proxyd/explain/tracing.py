"""`proxyd trace`: the question, the model's answer and the real packet's, put together and shown.

Owns: the forms, and the reading of what the model needs. The answers themselves are trace.py's and live.py's.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from podlane.api.types import Service
from podlane.errors import PodlaneError, StoreUnavailable
from podlane.runtime.netlink import NETLINK_NETFILTER, NetlinkSocket
from proxyd.desired import Index
from proxyd.explain import live, remembered
from proxyd.explain.answers import ask as ask_daemon
from proxyd.explain.names import Names
from proxyd.explain.trace import Forecast, Outcome, check, forecast, parse
from proxyd.explain.view import KernelState, look, opened, read_kernel
from proxyd.options import Site
from proxyd.tables import ADMITTED, FAMILIES, REFUSED, SERVICES, Frontend, pack_frontend, unpack_frontend
from proxyd.walk import Kernel, Packet


@dataclass(frozen=True)
class Question:
    """A packet and what the model says of it."""

    packet: Packet
    forecast: Forecast
    names: Names

    @property
    def service(self) -> str:
        return self.names.frontend(pack_frontend(self.packet.frontend))


def ask(site: Site, source: str, destination: str, protocol: str, note: Callable[[str], None]) -> Question:
    """Raises BadInput, PodlaneError."""
    check(source, destination)
    index: Index | None = None
    try:
        with opened(site) as store:
            seen = look(site, store, ask_daemon(site.healthz_ip, site.healthz_port))
        kernel, index, names = seen.kernel, seen.index, seen.names
    except StoreUnavailable as error:
        kernel, names = read_kernel(), Names(None)
        note(f"without the services' names: {error}")
    packet = parse(source, destination, protocol, _known(kernel, index), lambda *name: _frontends(index, *name))
    family = FAMILIES[":" in packet.destination]
    for why in kernel.unreadable.values():
        note(why)
    if family not in kernel.tables:
        raise PodlaneError(f"trace: the kernel has no table of proxyd's for {family}; is proxyd running?")
    key = remembered.key_of(packet.frontend, packet.source)
    with NetlinkSocket(NETLINK_NETFILTER) as netfilter:
        number = remembered.endpoint_id(netfilter, family, key)
    model = Kernel(
        kernel.tables[family], kernel.skeletons[family], kernel.local, {} if number is None else {key: number}
    )
    return Question(packet, forecast(packet, model), names)


def _known(kernel: KernelState, index: Index | None) -> set[Frontend]:
    found = {
        unpack_frontend(key)
        for each in kernel.tables.values()
        for m in (SERVICES, ADMITTED, REFUSED)
        for key in each[m]
    }
    return found | ({unpack_frontend(key) for key in index.frontends} if index is not None else set())


def _frontends(index: Index | None, namespace: str, name: str, version: int) -> Iterable[tuple[str, Frontend]]:
    if index is None:
        raise PodlaneError(f"find service {namespace}/{name}: etcd does not answer; give its address and port")
    service: Service | None = index.services.get(f"{namespace}/{name}")
    if service is None:
        return
    for address in service.spec.cluster_ips or (service.spec.cluster_ip,):
        if address not in {"", "None"} and (":" in address) == (version == 6):
            for port in service.spec.ports:
                yield port.name, Frontend(address, port.protocol, port.port)


def send(question: Question) -> live.Seen:
    return live.send(question.packet)


def agrees(question: Question, seen: live.Seen) -> bool:
    return seen.outcome in question.forecast.outcomes


# --- for people ----------------------------------------------------------------------


def render_forecast(question: Question) -> str:
    packet, told = question.packet, question.forecast
    about = f"  ({question.service})" if question.service else ""
    lines = [f"{packet.source} to {packet.frontend}{about}", "", "By the rules and elements in the kernel:"]
    lines += [f"  {step}" for step in told.common]
    if len(told.possible) == 1:
        only = told.possible[0]
        return "\n".join([*lines, *(f"  {step}" for step in only.steps), "", f"It {_told(question, only.outcome)}."])
    lines += ["", f"Then one of {len(told.possible)}:"]
    for each in told.possible:
        lines.append(f"  {float(each.chance):6.1%}  it {_told(question, each.outcome)}")
        lines += [f"          {step}" for step in each.steps]
    return "\n".join(lines)


def render_seen(question: Question, seen: live.Seen) -> str:
    packet = question.packet
    source = Frontend(packet.source, packet.protocol, seen.source_port)
    lines = [f"A real packet from {source}, {seen.entry}:"]
    before = None
    for event in seen.events:
        if event.ends is not None:
            now = Frontend(event.ends.destination, event.ends.protocol, event.ends.port)
            if before is not None and now != before:
                lines.append(f"  now for {now}")
            before = now
        lines.append(f"  {event.family} {event.table} {event.chain}: {seen.text(event)}  -> {event.verdict}")
    if not seen.events:
        lines.append("  no rule saw it: rp_filter may have dropped it, or a table of the bridge or netdev family")
    if seen.shown_as is not None:
        lines.append(f"  conntrack: replies are expected at {seen.shown_as}")
    lines += ["", f"It {_told(question, seen.outcome)}."]
    if agrees(question, seen):
        lines.append("agree")
    else:
        expected = " or ".join(sorted(_told(question, each) for each in question.forecast.outcomes))
        lines.append(f"DISAGREE: by the model it {expected}")
    return "\n".join(lines)


def _told(question: Question, outcome: Outcome) -> str:
    if outcome.target is not None and (node := question.names.node(outcome.target.address)):
        return str(outcome).replace(str(outcome.target), f"{outcome.target} on {node}", 1)
    return str(outcome)


def document(question: Question, seen: live.Seen | None) -> dict[str, Any]:
    """For programs."""
    packet, told = question.packet, question.forecast
    found: dict[str, Any] = {
        "source": packet.source,
        "destination": packet.destination,
        "port": packet.port,
        "protocol": packet.protocol,
        "service": question.service or None,
        "steps": list(told.common),
        "outcomes": [
            {**_outcome(question, each.outcome), "chance": float(each.chance), "steps": list(each.steps)}
            for each in told.possible
        ],
    }
    if seen is not None:
        found["live"] = {
            **_outcome(question, seen.outcome),
            "agrees": agrees(question, seen),
            "sourcePort": seen.source_port,
            "arrives": str(seen.entry),
            "rules": [
                {
                    "family": each.family,
                    "table": each.table,
                    "chain": each.chain,
                    "rule": seen.text(each),
                    "verdict": each.verdict,
                }
                for each in seen.events
            ],
        }
    return found


def _outcome(question: Question, outcome: Outcome) -> dict[str, Any]:
    target = outcome.target
    return {
        "action": outcome.action,
        "endpoint": None if target is None else {"address": target.address, "port": target.port},
        "node": question.names.node(target.address) or None if target is not None else None,
        "masqueraded": outcome.masquerade,
    }
