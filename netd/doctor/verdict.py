"""From what probes saw to what is wrong between this host and a peer. Pure.

Owns: the reasoning. Which way a packet got lost follows from probes whose
answers come back another way than they went:

    asked by   answered by   works while VXLAN both ways does not
    VXLAN      plain         their VXLAN packets do not reach us
    plain      VXLAN         ours do not reach them
    plain      plain         the host is there, and VXLAN passes neither way
    none of these            the host is not there

and whether it was this host that lost it follows from where an answer was last
heard: on the underlay, behind the overlay device, at a socket. Invariant: of a
peer that does not answer one cause is named, the most exact that the probes
bear out.
"""

from __future__ import annotations

from collections.abc import Iterator

from netd.doctor.finding import Finding, error, ok, some, warning
from netd.doctor.seen import Kind, Seen
from netd.doctor.wire import Place

_BAD_LOSS = 0.05
"""The part of probes lost from which on connections are slow enough to be noticed."""


def judge(seen: Seen) -> list[Finding]:
    """All there is to say of one peer's VTEP."""
    if seen.target.direct:
        return list(_direct(seen))
    if not seen.answered(Kind.VXLAN):
        return [_silent(seen)]
    found = list(_lost_here(seen))
    if not found:
        found.append(_reached(seen))
    return [*found, *_loss(seen, Kind.VXLAN), *_path_mtu(seen), *_checksums(seen), *_forwarding(seen)]


def _reached(seen: Seen) -> Finding:
    count, target = seen.tally(Kind.VXLAN), seen.target
    evidence = f"{count.count()} of {count.sent} probes to {target.vtep} answered{_rtt(seen, Kind.VXLAN)}"
    if seen.plainly:
        what = "it answers without VXLAN, while this host sends with it"
        fix = "set Backend.DirectRouting alike for all hosts and restart their netd; until then rp_filter=2 on both"
        return warning("reach", what, evidence=f"{seen.plainly} plain answers; {evidence}", fix=fix, peer=target.peer)
    return ok("reach", f"answers by VXLAN{_rtt(seen, Kind.VXLAN)}", peer=target.peer, evidence=evidence)


def _rtt(seen: Seen, kind: Kind) -> str:
    rtts = seen.tally(kind).rtts
    if not rtts:
        return ""
    low, mean, high = (1000 * value for value in (min(rtts), sum(rtts) / len(rtts), max(rtts)))
    return f" in {low:.2f}/{mean:.2f}/{high:.2f} ms (least/mean/most)"


def _silent(seen: Seen) -> Finding:
    """Why VXLAN probes brought no answer. What names a cause comes before what only names a direction."""
    for explain in (_not_sent, _corrupted_in, _nobody_listens, _wrong_mac, _corrupted_out, _echo_filtered):
        if finding := explain(seen):
            return finding
    return _broken_direction(seen)


def _not_sent(seen: Seen) -> Finding | None:
    target, refused = seen.target, seen.tally(Kind.VXLAN).refused
    if not refused:
        return None
    what = f"this host does not send VXLAN packets to {target.remote}"
    evidence = f"the kernel refuses to: {refused.lower()}"
    fix = f"nft list ruleset | grep -n {target.port} (output chains); ip route get {target.remote}"
    return error("vxlan-out", what, evidence=evidence, fix=fix, peer=target.peer)


def _corrupted_in(seen: Seen) -> Finding | None:
    target = seen.target
    if not seen.spoiled:
        return None
    what = f"packets from {target.peer} arrive corrupted"
    evidence = f"{seen.spoiled} answers with a wrong inner checksum were heard on {target.underlay}"
    return error("checksum", what, evidence=evidence, fix=_no_offload(target.peer, target.device), peer=target.peer)


def _no_offload(where: str, device: str) -> str:
    return (
        f"on {where}, which sends them: ethtool -K {device} tx-checksum-ip-generic off; "
        "if that does not help, look at the network between: a NIC, its driver or a middlebox alters packets"
    )


def _nobody_listens(seen: Seen) -> Finding | None:
    target = seen.target
    if not seen.closed:
        return None
    what = f"{target.peer} does not take VXLAN packets at UDP port {target.port}"
    evidence = f"{seen.closed} answers them with ICMP port unreachable: no such device, or a firewall that rejects"
    fix = f"on {target.peer}: systemctl status netd; ip -d link show {target.device}; "
    fix += f"nft list ruleset | grep -n {target.port}"
    return error("vxlan-out", what, evidence=evidence, fix=fix, peer=target.peer)


def _wrong_mac(seen: Seen) -> Finding | None:
    target = seen.target
    if not seen.macs:
        return None
    what = f"{target.peer}'s device has another MAC address than its lease"
    evidence = f"the lease says {target.mac}, which does not answer; {some(sorted(seen.macs))} does"
    fix = f"on {target.peer}: systemctl restart netd (or flanneld), which publishes the device's; or: "
    fix += f"ip link set {target.device} address {target.mac}"
    return error("vtep-mac", what, evidence=evidence, fix=fix, peer=target.peer)


def _corrupted_out(seen: Seen) -> Finding | None:
    target = seen.target
    if not seen.altered:
        return None
    what = f"packets to {target.peer} arrive corrupted"
    evidence = f"it quotes what it got: the inner packet differs from what was sent at byte {some(seen.altered)}"
    fix = f"here, which sends them: ethtool -K {target.device} tx-checksum-ip-generic off; "
    fix += "if that does not help, look at the network between: a NIC, its driver or a middlebox alters packets"
    return error("checksum", what, evidence=evidence, fix=fix, peer=target.peer)


def _echo_filtered(seen: Seen) -> Finding | None:
    target = seen.target
    if not seen.answered(Kind.BARE):
        return None
    what = f"{target.peer} drops pings to its VTEP address; VXLAN itself passes both ways"
    evidence = f"{seen.answered(Kind.BARE)} UDP probes were answered, {seen.sent(Kind.VXLAN)} pings were not"
    fix = f"pods need nothing; to let the doctor look further, on {target.peer}: "
    fix += f"iptables -I INPUT -i {target.device} -p icmp --icmp-type echo-request -j ACCEPT"
    return warning("reach", what, evidence=evidence, fix=fix, peer=target.peer)


def _broken_direction(seen: Seen) -> Finding:
    target = seen.target
    back_plain, back_vxlan = seen.answered(Kind.BACK_PLAIN), seen.answered(Kind.BACK_VXLAN)
    counts = ", ".join(f"{name} {seen.answered(kind)} of {seen.sent(kind)}" for kind, name in _WAYS.items())
    evidence = f"answered: {counts}" + "".join(f"; {each}" for each in sorted(seen.refusals))
    port, here, there = target.port, target.local, target.remote
    rules = f"nft list ruleset | grep -n {port}; iptables -S | grep {port}"
    cloud = f"and what filters between them (security groups, switches): UDP {port} from {{}} to {{}}"
    if back_plain and not back_vxlan:
        what = f"VXLAN packets from {target.peer} do not reach this host; those to it arrive"
        fix = f"on {target.peer}: bridge fdb show dev {target.device} | grep {target.own_mac} (must say dst {here}); "
        fix += f"ip route get {target.own_vtep}; {rules}; here: {rules}; {cloud.format(there, here)}"
        return error("vxlan-in", what, evidence=evidence, fix=fix, peer=target.peer)
    if back_vxlan and not back_plain:
        what = f"VXLAN packets to {target.peer} do not arrive there; those from it reach this host"
        fix = f"here: {rules} (output); on {target.peer}: {rules} (input); ip -d link show {target.device} "
        fix += f"(must say id {target.vni} and dstport {port}); {cloud.format(here, there)}"
        return error("vxlan-out", what, evidence=evidence, fix=fix, peer=target.peer)
    if back_plain and back_vxlan:
        what = f"VXLAN packets pass between here and {target.peer} now and then only"
        fix = f"run netd doctor {target.peer} again; look at the loss on {target.underlay}: ip -s link show "
        fix += target.underlay
        return error("vxlan", what, evidence=evidence, fix=fix, peer=target.peer)
    if seen.answered(Kind.PLAIN):
        what = f"no VXLAN packet passes between here and {target.peer}, though the host answers"
        evidence += "; which way is broken cannot be told: neither way alone brings an answer, as also where "
        evidence += f"{target.peer} has a strict rp_filter or the network passes known source addresses only"
        fix = f"here and on {target.peer}: {rules}; there: systemctl status netd; ip -d link show {target.device} "
        fix += f"(must say id {target.vni} and dstport {port}); {cloud.format(here, there)}, and back"
        return error("vxlan", what, evidence=evidence, fix=fix, peer=target.peer)
    return _host_gone(seen, evidence)


_WAYS = {
    Kind.VXLAN: "VXLAN both ways",
    Kind.BACK_PLAIN: "there by VXLAN and back without",
    Kind.BACK_VXLAN: "there without and back by VXLAN",
    Kind.PLAIN: "plain ping",
}


def _host_gone(seen: Seen, evidence: str) -> Finding:
    target = seen.target
    what = f"{target.peer} does not answer at all"
    if seen.hop is not None:
        hop = "it" if seen.hop.address == str(target.remote) else f"the next hop {seen.hop.address}"
        evidence += f"; {hop} is {seen.hop.state} on {target.underlay}"
        if seen.hop.mac and hop == "it":
            what = f"{target.peer} is on the network but answers neither pings nor VXLAN"
    fix = f"see whether the host runs: ip neigh show {target.remote}; ip route get {target.remote}; "
    fix += "netd leases shows its lease, which netd release removes if the host is gone for good"
    return error("reach", what, evidence=evidence, fix=fix, peer=target.peer)


def _lost_here(seen: Seen) -> Iterator[Finding]:
    """Answers that reached this host and did not get where a program would hear them."""
    target = seen.target
    heard = f"{seen.answered(Kind.VXLAN)} answers were heard on {target.underlay}"
    if seen.vnis:
        what = f"{target.peer} sends with the VNI {some(sorted(seen.vnis))}, this host's is {target.vni}"
        fix = f"on {target.peer}: ip -d link show; systemctl restart netd, so that it takes the network config's VNI"
        yield error("vni", what, evidence=heard, fix=fix, peer=target.peer)
    elif seen.misled:
        what = f"{target.peer} sends to the MAC address {some(sorted(seen.misled))}, which is not this host's"
        evidence = f"{heard}, for that address instead of {target.own_mac}"
        fix = f"on {target.peer}: ip neigh replace {target.own_vtep} lladdr {target.own_mac} dev {target.device} "
        fix += "nud permanent; or systemctl restart netd (or flanneld) there"
        yield error("peer-neighbour", what, evidence=evidence, fix=fix, peer=target.peer)
    elif Place.DEVICE not in seen.places:
        return  # without a device that is up; drift says so
    elif not seen.answered(Kind.VXLAN, Place.DEVICE):
        yield _dropped(seen, f"{heard}, none came out of {target.device}", target.underlay)
    elif Place.SOCKET in seen.places and not seen.answered(Kind.VXLAN, Place.SOCKET):
        yield _dropped(seen, f"{heard} and came out of {target.device}, none reached a socket", target.device)
    elif Place.SOCKET in seen.places and not seen.answered(Kind.KERNEL, Place.SOCKET):
        what = f"this host's own routes, neighbours or FDB do not lead to {target.peer}"
        said = seen.tally(Kind.KERNEL).refused or "no answer"
        evidence = f"probes past them are answered; by them: {said.lower()} from {target.vtep}"
        fix = f"netd plan; ip route get {target.vtep}; ip neigh show {target.vtep}; "
        fix += f"bridge fdb show dev {target.device} | grep {target.mac}"
        yield error("kernel-path", what, evidence=evidence, fix=fix, peer=target.peer)


def _dropped(seen: Seen, evidence: str, interface: str) -> Finding:
    target = seen.target
    if seen.rp_drops >= seen.answered(Kind.VXLAN):  # fewer are somebody else's packets
        what = f"rp_filter drops what {target.peer} sends, because this host would answer by another interface"
        evidence += f"; meanwhile rp_filter dropped {seen.rp_drops} packets (nstat -az TcpExtIPReversePathFilter)"
        fix = f"sysctl -w net/ipv4/conf/all/rp_filter=2 net/ipv4/conf/{interface}/rp_filter=2 (loose); "
        fix += f"ip route get {target.remote if interface == target.underlay else target.vtep} shows the other way"
        return error("rp-filter", what, evidence=evidence, fix=fix, peer=target.peer)
    what = f"this host drops what {target.peer} sends, after it arrived on {interface}"
    fix = f"nft list ruleset; iptables -S INPUT; ip -d link show {target.device} (must say id {target.vni} and "
    fix += f"dstport {target.port})"
    return error("firewall", what, evidence=evidence, fix=fix, peer=target.peer)


def _loss(seen: Seen, kind: Kind) -> Iterator[Finding]:
    sent, answered = seen.sent(kind), seen.answered(kind)
    lost, peer = sent - answered, seen.target.peer
    if not lost:
        yield ok("loss", f"none of {sent} probes", peer=peer)
        return
    plain = f"{seen.sent(Kind.PLAIN) - seen.answered(Kind.PLAIN)} of {seen.sent(Kind.PLAIN)} plain pings"
    what = f"{100 * lost // sent} % of probes to {peer} are lost"
    evidence = f"{lost} of {sent} by the overlay, {plain} outside it"
    fix = f"ip -s link show {seen.target.underlay} (here and there); ethtool -S {seen.target.underlay}; "
    fix += "plain pings are lost too where the network itself is to blame"
    grave = lost > sent * _BAD_LOSS
    yield (error if grave else warning)("loss", what, evidence=evidence, fix=fix, peer=peer)


def _path_mtu(seen: Seen) -> Iterator[Finding]:
    target = seen.target
    if not seen.sent(Kind.FULL):
        return
    if seen.answered(Kind.FULL) or seen.passed >= target.mtu:
        yield ok("path-mtu", f"packets of {target.mtu} bytes pass", peer=target.peer)
        return
    least = seen.passed
    fix = f"give the network between the MTU that {target.underlay} has"
    what = f"MTU too high on the path to {target.peer}: not even packets of {seen.lost} bytes arrive"
    if least:
        what = f"MTU too high on the path to {target.peer}: packets above {least} bytes do not arrive"
        underlay = least + (0 if target.direct else target.overhead)
        fix = f"set Backend.MTU to {underlay} in the network config and restart netd on every host; or {fix}"
    evidence = f"none of {seen.sent(Kind.FULL)} packets of {target.mtu} bytes was answered"
    evidence += f", one of {least} was" if least else ""
    evidence += _which_way_too_big(seen) + (f"; {seen.too_big}" if seen.too_big else "")
    yield error("path-mtu", what, evidence=evidence, fix=fix, peer=target.peer)


def _which_way_too_big(seen: Seen) -> str:
    """UDP probes of full size have small answers; a small one among them shows that they are answered at all."""
    if refused := seen.tally(Kind.FULL).refused:
        return f"; this host itself says: {refused.lower()}"
    if seen.answered(Kind.BARE_FULL):
        return "; full-size packets arrive there, so it is the way back"
    if seen.sent(Kind.BARE_FULL) and seen.answered(Kind.BARE) == seen.sent(Kind.BARE):
        return "; full-size packets do not arrive there"
    return ""


def _checksums(seen: Seen) -> Iterator[Finding]:
    for explain in (_corrupted_in, _corrupted_out, _spoiled_here):
        if finding := explain(seen):
            yield finding
            return
    told = "answers arrive as they were sent"
    if seen.answered(Kind.BARE):
        told = "packets arrive as they were sent, both ways"
    yield ok("checksum", told, peer=seen.target.peer)


def _spoiled_here(seen: Seen) -> Finding | None:
    """Whether datagrams with a checksum are dropped that pass without one."""
    target = seen.target
    if seen.answered(Kind.SUMMED) or not seen.sent(Kind.SUMMED) or not seen.answered(Kind.KERNEL, Place.SOCKET):
        return None
    if seen.answered(Kind.VXLAN) < seen.sent(Kind.VXLAN):
        return None  # where anything gets lost, two may get lost by chance
    # the last one without a checksum was sent after those with one: the peer was still answering
    if seen.answered(Kind.BARE) < seen.sent(Kind.BARE):
        return None
    what = f"what this host sends arrives at {target.peer} with wrong checksums"
    evidence = f"{seen.answered(Kind.BARE)} UDP probes without a checksum were answered, and none of "
    evidence += f"{seen.sent(Kind.SUMMED)} with the kernel's; pings pass"
    fix = f"here: ethtool -K {target.device} tx-checksum-ip-generic off"
    return error("checksum", what, evidence=evidence, fix=fix, peer=target.peer)


def _forwarding(seen: Seen) -> Iterator[Finding]:
    """Whether the peer passes on what is not for itself: what pods on it need, and its VTEP address does not."""
    target = seen.target
    if seen.answered(Kind.FORWARDED):
        yield ok("peer-forwarding", "it passes packets on", peer=target.peer)
    elif seen.sent(Kind.FORWARDED) and seen.answered(Kind.VXLAN) == seen.sent(Kind.VXLAN):
        what = f"{target.peer} answers for itself, but passes no packet on"
        evidence = f"none of {seen.sent(Kind.FORWARDED)} packets to {target.own_vtep} that it was given came back"
        path = "net/ipv4/ip_forward" if target.family == 4 else "net/ipv6/conf/all/forwarding"
        fix = f"on {target.peer}: sysctl -w {path}=1; iptables -S FORWARD (with -P FORWARD DROP, as Docker sets it, "
        fix += "the pod network must be accepted: netd run --iptables-forward-rules does that)"
        yield warning("peer-forwarding", what, evidence=evidence, fix=fix, peer=target.peer)


def _direct(seen: Seen) -> Iterator[Finding]:
    """A peer that netd routes without VXLAN."""
    target, count = seen.target, seen.tally(Kind.KERNEL)
    if count.count():
        what = f"answers without VXLAN{_rtt(seen, Kind.KERNEL)}"
        yield ok("reach", what, peer=target.peer, evidence=f"{count.count()} of {count.sent} probes answered")
        yield from (*_loss(seen, Kind.KERNEL), *_path_mtu(seen))
        return
    evidence = f"0 of {count.sent} pings between {target.own_vtep} and {target.vtep} answered, "
    evidence += f"{seen.answered(Kind.PLAIN)} of {seen.sent(Kind.PLAIN)} between the hosts' own addresses"
    evidence += "".join(f"; {each}" for each in sorted(seen.refusals))
    if not seen.answered(Kind.PLAIN):
        yield _host_gone(seen, evidence)
        return
    if not target.device:
        what = f"the host answers; {target.vtep}, which only a bridge there would have, does not"
        yield ok("reach", what, peer=target.peer, evidence=evidence)
        return
    what = f"pod packets do not pass to {target.peer} without VXLAN, though the host answers"
    if seen.rp_drops:
        evidence += f"; meanwhile rp_filter dropped {seen.rp_drops} packets here"
    fix = 'set Backend.DirectRouting to false or "auto" in the network config; or let the network between pass pod '
    fix += f"addresses (source checks), and on both hosts: sysctl -w net/ipv4/conf/{target.underlay}/rp_filter=2"
    yield error("direct", what, evidence=evidence, fix=fix, peer=target.peer)
