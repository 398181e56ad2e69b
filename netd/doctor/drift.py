"""Where the kernel differs from what netd wants, said in words. Pure.

Owns: the wording of each kind of step the planner would take. What differs is
the planner's to say and nobody else's, so the doctor and netd never disagree;
the command to type is the step's own text.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from netd import plan as p
from netd.doctor.finding import Finding, error, ok, some, warning
from netd.model import Actual, Desired, Device
from podlane.api.subnets import Address, Network

_SHOWN = 5
"""How many findings of one kind are told one by one."""

_SELF = "netd does this itself within a second while it runs: systemctl status netd"


def drift(desired: Desired, actual: Actual, names: Mapping[Address | Network | str, str]) -> list[Finding]:
    """`names` gives a peer's name for its subnets, VTEP addresses, VTEP MAC addresses and public addresses."""
    try:
        plan = p.plan(desired, actual)
    except p.Refused as refused:
        why = str(refused)
        name = next(iter(actual.foreign), "")
        fix = f"ip link show {name}; then: ip link set {name} down; ip link set {name} name {name}-old"
        return [error("device", f"{name} is taken by a link that is not VXLAN", evidence=why, fix=fix)]
    found: dict[str, list[Finding]] = {"device": [], "route": [], "fdb": [], "neighbour": [], "left-over": []}
    # its entries went with it, and come back with it
    sick = {name for step in plan.device_steps if (name := _takes_entries(step))}
    new = {step.device.name for step in plan.device_steps if isinstance(step, p.CreateDevice)}
    for step in plan.steps:
        if isinstance(step, p.SetUp | p.AddAddress | p.SetMac | p.SetMtu) and step.name in new:
            continue
        if isinstance(step, p.SetRoute | p.SetFdb | p.SetNeighbour) and _device_of(step) in sick:
            continue
        for finding in _step(step, desired, actual, names):
            found[finding.check].append(finding)
    for problem in plan.problems:
        fix = "ip address show; give the address that is in a peer's subnet to no interface of this host"
        found["route"].append(error("route", "a peer's subnet is on this host", evidence=problem, fix=fix))
    return [each for check, several in found.items() for each in _summary(check, several, desired)]


def _takes_entries(step: p.DeviceStep) -> str:
    match step:
        case p.CreateDevice(device):
            return device.name
        case p.SetUp(name) | p.SetMac(name):
            return name
    return ""


def _device_of(step: p.SetRoute | p.SetFdb | p.SetNeighbour) -> str:
    return step.route.device if isinstance(step, p.SetRoute) else step.name


def _summary(check: str, found: list[Finding], desired: Desired) -> list[Finding]:
    if not found:
        healthy = {
            "device": f"{some(desired.devices) or 'no device'}: as it should be",
            "route": f"{len(desired.routes)} routes to peers",
            "fdb": f"{len(desired.fdb)} FDB entries",
            "neighbour": f"{len(desired.neighbours)} neighbours",
        }
        return [ok(check, healthy[check])] if check in healthy else []
    if len(found) <= _SHOWN:
        return found
    first = found[0]
    what = f"{len(found)} of this kind; the first: {first.what}"
    fix = f"netd plan shows all of them; {_SELF}; else: systemctl restart netd"
    return [Finding(check, first.severity, "", what, some([each.evidence for each in found]), fix)]


def _step(
    step: p.Step, desired: Desired, actual: Actual, names: Mapping[Address | Network | str, str]
) -> Iterator[Finding]:
    """What one step would put right. Sysctls are the checks' to tell."""
    fix = f"{step}  ({_SELF})"
    match step:
        case p.SetRoute(destination, route):
            have = actual.routes.get(destination)
            evidence = f"ip route show {destination}: nothing"
            if have is not None:
                evidence = (
                    f"it goes {_via(have.gateway, have.device)}, and should go {_via(route.gateway, route.device)}"
                )
            word = "no" if have is None else "a wrong"
            peer = names.get(destination, "")
            yield error("route", f"{word} route to {destination}", evidence=evidence, fix=fix, peer=peer)
        case p.SetFdb(name, mac, entry):
            have_entry = actual.fdb.get((name, mac))
            should = f"the lease says {entry.remote}"
            word, evidence = "no FDB entry", f"bridge fdb show dev {name}: nothing for {mac}; {should}"
            if have_entry is not None:
                word, evidence = "a wrong FDB entry", f"packets for {mac} go to {have_entry.remote}; {should}"
            yield error("fdb", f"{word} for {mac}", evidence=evidence, fix=fix, peer=names.get(mac, ""))
        case p.SetNeighbour(name, address, neighbour):
            have_neighbour = actual.neighbours.get((name, address))
            should = f"the lease says {neighbour.mac}"
            word, evidence = "no neighbour", f"ip neigh show {address} dev {name}: nothing permanent; {should}"
            if have_neighbour is not None and have_neighbour.mac != neighbour.mac:
                word, evidence = "a wrong MAC address", f"{address} is taken to be {have_neighbour.mac}; {should}"
            elif have_neighbour is not None:
                yield warning(
                    "neighbour",
                    f"the neighbour {address} does not carry netd's mark",
                    evidence=f"its protocol is {have_neighbour.protocol}, so netd would not remove it with its lease",
                    fix=fix,
                    peer=names.get(address, ""),
                )
                return
            yield error("neighbour", f"{word} for {address}", evidence=evidence, fix=fix, peer=names.get(address, ""))
        case p.DeleteRoute(destination) if destination in desired.routes:
            return  # only for the right one to take its place
        case p.DeleteRoute() | p.DeleteFdb() | p.DeleteNeighbour() | p.DeleteBlackhole():
            what = "an entry of netd's that belongs to no lease"
            yield warning("left-over", what, evidence=f"netd would remove it: {step}", fix=fix)
        case p.AddBlackhole(destination):
            yield warning("route", f"no blackhole route for {destination}", evidence="it is not there", fix=fix)
        case p.SetSysctl():
            return
        case _:
            yield from _device(step, desired, actual, fix)


def _device(step: p.DeviceStep, desired: Desired, actual: Actual, fix: str) -> Iterator[Finding]:
    match step:
        case p.CreateDevice(device) if device.name not in actual.devices:
            what = f"{device.name} does not exist"
            yield error("device", what, evidence=f"ip link show {device.name}: no such device", fix=fix)
        case p.CreateDevice(device):
            have = actual.devices[device.name]
            remake = f"ip link delete {device.name}; {fix}"
            what, evidence = f"{device.name} is another tunnel", _difference(have, device)
            yield error("device", what, evidence=evidence, fix=remake)
        case p.DeleteDevice(name) if name in desired.obsolete:
            what = f"{name} belongs to an earlier network config"
            yield warning("left-over", what, evidence=f"ip link show {name}", fix=fix)
        case p.SetMac(name, mac):
            have_mac = actual.devices[name].mac if name in actual.devices else "none"
            what = f"{name} has another MAC address than its lease"
            yield error("device", what, evidence=f"it has {have_mac}; peers send to {mac}", fix=fix)
        case p.SetMtu(name, mtu):
            what, evidence = f"{name} has a wrong MTU", f"it has {actual.devices[name].mtu}, and should have {mtu}"
            yield error("device", what, evidence=evidence, fix=fix)
        case p.SetUp(name) if name in actual.devices:
            yield error("device", f"{name} is down", evidence=f"ip link show {name}: not UP", fix=fix)
        case p.AddAddress(name, address) if name in actual.devices:
            what = f"{name} lacks its address {address}"
            yield error("device", what, evidence=f"ip address show dev {name}: not there", fix=fix)
        case p.DeleteAddress(name, address):
            what = f"{name} still has {address}, an earlier lease's"
            yield warning("left-over", what, evidence=f"ip address show dev {name}", fix=fix)


def _difference(have: Device, want: Device) -> str:
    fields = ("vni", "port", "local", "underlay", "learning", "gbp")
    differing = [(each, getattr(have, each), getattr(want, each)) for each in fields]
    return ", ".join(f"{name} is {a} and should be {b}" for name, a, b in differing if a != b)


def _via(gateway: object, device: str) -> str:
    return f"via {gateway} dev {device}" if gateway else f"to dev {device} itself"
