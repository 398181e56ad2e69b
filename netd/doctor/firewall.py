"""Whether this host's own firewall lets peers' VXLAN packets in. Pure.

Owns: the verdict on each peer, from nft's listing (ruleset.py) and from what
iptables' older backend holds, which nft does not show. Invariant: probes that
came through outweigh a listing that cannot be read to the end.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Collection, Iterable

from netd.desired import carriers
from netd.doctor.facts import DoctorContext, HostFacts
from netd.doctor.finding import Finding, error, ok, some, warning
from netd.doctor.ruleset import Packet, Verdict
from netd.ruleset import TABLE
from podlane.api.subnets import Address

_JUDGED = 200
"""Peers whose packets are walked through the ruleset: a rule that stops one of thousands is found by its name."""


def firewall(
    context: DoctorContext, facts: HostFacts, peers: Iterable[Address], delivered: Collection[Address]
) -> list[Finding]:
    """`delivered` are peers whose packets a probe saw getting through."""
    over = {carrier.over for carrier in carriers(context.config, context.underlay)}
    sources = [address for address in peers if address.version in over][:_JUDGED]
    found = [*_by_ruleset(context, facts, sources, delivered), *_by_legacy(context, facts, sources, delivered)]
    if found or not over or facts.ruleset is None:
        return found
    port = context.config.backend.port
    return [ok("firewall", f"nothing here is seen to drop VXLAN packets (UDP port {port})")]


def _by_ruleset(
    context: DoctorContext, facts: HostFacts, sources: list[Address], delivered: Collection[Address]
) -> list[Finding]:
    if facts.ruleset is None:
        return []
    stopped: defaultdict[Verdict, list[Address]] = defaultdict(list)
    for source in sources:
        own = context.underlay.local(4 if source.version == 4 else 6)
        if own is None:
            continue
        verdict = facts.ruleset.judge(Packet(context.underlay.name, source, own.ip, context.config.backend.port))
        if verdict.kind == "drop" or (verdict.kind == "perhaps" and source not in delivered):
            stopped[verdict].append(source)
    return [_stopped(context, verdict, peers) for verdict, peers in stopped.items()]


def _stopped(context: DoctorContext, verdict: Verdict, peers: list[Address]) -> Finding:
    port, name = context.config.backend.port, context.underlay.name
    peer = str(peers[0]) if len(peers) == 1 else ""
    where = f"the rule with handle {verdict.rule}" if verdict.rule else "the policy"
    evidence = f"{where} of nft chain {verdict.chain}; see: nft -a list chain {verdict.chain}"
    fix = f'nft insert rule {verdict.chain} iifname "{name}" udp dport {port} accept'
    if TABLE in verdict.chain.split():
        # netd's own guard: it admits what has a lease
        fix = "it admits only leases netd knows of; systemctl restart netd brings it up to date; see netd leases"
    elif verdict.chain.endswith(("INPUT", "input")):
        fix += f"; with iptables: iptables -I INPUT -i {name} -p udp --dport {port} -j ACCEPT"
    if verdict.kind == "drop":
        what = f"this host's firewall drops VXLAN packets (UDP port {port}) from {some(peers)}"
        return error("firewall", what, evidence=evidence, fix=fix, peer=peer)
    what = f"this host's firewall may drop VXLAN packets (UDP port {port}) from {some(peers)}"
    evidence = f"nothing is seen that surely accepts them before {evidence}"
    return warning("firewall", what, evidence=evidence, fix=fix, peer=peer)


def _by_legacy(
    context: DoctorContext, facts: HostFacts, sources: list[Address], delivered: Collection[Address]
) -> list[Finding]:
    port = context.config.backend.port
    lines = facts.legacy_rules.splitlines()
    about = [line for line in lines if line.startswith("-A ") and f" {port}" in line]
    drops = [line for line in about if line.endswith(("-j DROP", "-j REJECT")) or "-j REJECT " in line]
    closed = any(line.startswith((":INPUT DROP", "-P INPUT DROP")) for line in lines)
    opened = any(line.endswith("-j ACCEPT") for line in about)
    unproved = [source for source in sources if source not in delivered]
    if not unproved or not (drops or (closed and not opened)):
        return []
    evidence = drops[0] if drops else "the policy of INPUT is DROP, and no rule names the port"
    fix = f"iptables-legacy -I INPUT -i {context.underlay.name} -p udp --dport {port} -j ACCEPT"
    what = f"this host's firewall may drop VXLAN packets (UDP port {port})"
    return [warning("firewall", what, evidence=f"iptables-legacy-save: {evidence}", fix=fix)]
