"""The doctor's round: facts, checks, probes, findings.

Owns: which peers are looked at and in what order. Invariant: a check that
cannot be made says so and stops no other.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from ipaddress import ip_address

from netd.desired import Carrier, Family, Lease, carriers, overlay_mtu
from netd.doctor import checks
from netd.doctor.drift import drift
from netd.doctor.examine import BATCH, Pace, examine, others_with
from netd.doctor.facts import DoctorContext, collect
from netd.doctor.finding import Finding, error
from netd.doctor.firewall import firewall
from netd.doctor.seen import Kind, Seen, Target
from netd.doctor.verdict import judge
from netd.doctor.wire import Place
from podlane.api.subnets import Address, Network, Subnets
from podlane.errors import PodlaneError, UsageError

Progress = Callable[[str], None]


def diagnose(
    context: DoctorContext, peer: str | None, progress: Progress = lambda _: None, *, pace: Pace | None = None
) -> list[Finding]:
    """Look at this host and at one peer or all.

    `peer` is a public address, a subnet, a lease key or an address of a pod
    there. Raises UsageError when no lease fits.
    """
    chosen = context.peers if peer is None else (find_peer(context, peer),)
    progress("reading this host's state")
    facts = collect(context)
    seen: list[Seen] = []
    probed = list(_probed(context, chosen, pace or Pace(), progress, seen))
    delivered = {each.target.remote for each in seen if each.answered(Kind.VXLAN, Place.DEVICE)}
    sources = [address for lease in chosen for address in lease.value.addresses]
    found = [
        *checks.unread(facts),
        *checks.own_lease(context),
        *checks.lease_table(context),
        # without a lease nothing is wanted, and everything would seem to be left over
        *(drift(context.desired, context.actual, checks.names(context.leases)) if context.own is not None else ()),
        *checks.forwarding(context, facts),
        *checks.reverse_path(context, facts),
        *checks.mtu(context),
        *checks.overlap(context, facts),
        *firewall(context, facts, sources, delivered),
        *checks.offload(facts),
        *probed,
    ]
    if peer is None:
        return found
    name = checks.peer_name(chosen[0])
    return [each for each in found if each.peer in {"", name}]


def find_peer(context: DoctorContext, wanted: str) -> Lease:
    """Raises UsageError."""
    for lease in context.peers:
        if wanted in {lease.key, *map(str, lease.value.addresses), *map(str, lease.subnets)}:
            return lease
    try:
        address = ip_address(wanted)
    except ValueError:
        address = None
    for lease in context.peers:
        if address is not None and any(address in subnet for subnet in lease.subnets):
            return lease
    raise UsageError(f'find peer "{wanted}": no other host\'s lease has that public address, subnet or pod address')


def _probed(
    context: DoctorContext,
    peers: tuple[Lease, ...],
    pace: Pace,
    progress: Progress,
    seen: list[Seen],
) -> Iterator[Finding]:
    """Probe the peers, batch by batch; what was seen goes to `seen` as well."""
    try:
        yield from _shared_address(context, peers)
        found = targets(context, peers)
        for start in range(0, len(found), BATCH):
            batch = found[start : start + BATCH]
            progress(f"probing {batch[0].peer} ({start + 1} to {start + len(batch)} of {len(found)})")
            for each in examine(batch, pace):
                seen.append(each)
                family = f"IPv{each.target.family}: " if len(context.config.networks) > 1 else ""
                yield from (replace(finding, what=family + finding.what) for finding in judge(each))
    except PodlaneError as failure:
        fix = "run netd doctor as root, on the host itself"
        yield error("probe", "no probes could be sent", evidence=str(failure), fix=fix)


def _shared_address(context: DoctorContext, peers: tuple[Lease, ...]) -> Iterator[Finding]:
    """Whether two machines on the underlay's segment answer for one address."""
    own = context.underlay.v4
    if own is None:
        return
    near = [a for lease in peers for a in lease.value.addresses if a in own.network][:BATCH]
    for address, macs in others_with(context.underlay.name, [own.ip, *near]).items():
        allowed = 0 if address == str(own.ip) else 1
        if len(macs) <= allowed:
            continue
        mine = address == str(own.ip)
        who = "another machine has" if mine else f"{len(macs)} machines have"
        what = f"{who} the address {address} on {context.underlay.name}"
        evidence = f"ARP for it is answered by {', '.join(sorted(macs))}"
        fix = (
            "find the machine by its MAC address (bridge fdb show, or the switch's table), and give it another address"
        )
        yield error("public-address", what, evidence=evidence, fix=fix, peer="" if mine else address)


def targets(context: DoctorContext, leases: Iterable[Lease]) -> list[Target]:
    """The VTEPs of leases that probes can be sent to; none of a lease that netd does not use."""
    if context.own is None:
        return []
    told = checks.vtep_macs(context.own_lease) if context.own_lease is not None else {}
    pairs: list[tuple[Carrier | None, Family]] = [
        (carrier, family) for carrier in carriers(context.config, context.underlay) for family in carrier.families
    ]
    if not pairs:  # host-gw
        pairs = [(None, 4 if network.version == 4 else 6) for network in context.config.networks]
    found = [
        _target(context, lease, carrier, family)
        for lease in leases
        if lease.key not in context.desired.problems
        for carrier, family in pairs
    ]
    # what peers send to is what this host's lease says, whatever its device has
    return [replace(each, own_mac=told.get(each.family, each.own_mac)) for each in found if each is not None]


def _target(context: DoctorContext, lease: Lease, carrier: Carrier | None, family: Family) -> Target | None:
    """None where the lease lacks what the carrier needs; `desired.problems` says so then."""
    assert context.own is not None
    own, subnet = _of(context.own, family), _of(lease.subnets, family)
    over: Family = carrier.over if carrier is not None else family
    local, remote = context.underlay.local(over), _public(lease, over)
    if own is None or subnet is None or local is None or remote is None:
        return None
    inner = context.underlay.local(family)
    common = Target(
        peer=checks.peer_name(lease),
        family=family,
        remote=remote,
        local=local.ip,
        # without a VTEP the bridge's address, if there is a bridge
        vtep=subnet.network_address if carrier is not None else subnet.network_address + 1,
        own_vtep=own.network_address if carrier is not None else own.network_address + 1,
        mac="",
        own_mac="",
        vni=context.config.backend.vni,
        port=context.config.backend.port,
        mtu=overlay_mtu(context.config, context.underlay),
        device="",
        underlay=context.underlay.name,
        public=_public(lease, family),
        own_public=inner.ip if inner is not None else None,
        direct=True,
    )
    if carrier is None:
        return common
    device = context.desired.devices[carrier.name]
    route = context.desired.routes.get(subnet)
    return replace(
        common,
        mac=checks.vtep_macs(lease).get(family, ""),
        own_mac=device.mac,
        mtu=device.mtu,
        device=device.name,
        direct=route is not None and route.device == context.underlay.name,
    )


def _of(subnets: Subnets, family: Family) -> Network | None:
    return subnets.v4 if family == 4 else subnets.v6


def _public(lease: Lease, family: Family) -> Address | None:
    return next((a for a in lease.value.addresses if a.version == family), None)
