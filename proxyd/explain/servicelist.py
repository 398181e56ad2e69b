"""`proxyd services`: each service's frontends, who is behind them, and what the kernel makes of it.

Owns: the data (a list of JSON objects) and its forms for people. Pure. What is said to
be served is what this node's kernel has, compared with what the store asks for.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from podlane.api.types import Endpoint, Service
from podlane.runtime.text import human_duration, table
from proxyd.conntrack import Flows
from proxyd.desired import Touched
from proxyd.explain.names import port_of
from proxyd.explain.view import Seen
from proxyd.plan import plan_changes
from proxyd.serving import RANDOM, Wanted, affinity_of, balance_of, is_proxied
from proxyd.tables import (
    Frontend,
    Key,
    Target,
    family_of,
    unpack_frontend,
    unpack_target,
)

Counts = Mapping[tuple[Frontend, Target], Flows]
_Flows = Mapping[Frontend, Mapping[Target, Flows]]

_NO_FLOWS = Flows(0, None, None)


def services(seen: Seen, counts: Counts, names: Iterable[str]) -> list[dict[str, Any]]:
    """Everything there is to say of these services."""
    flows: dict[Frontend, dict[Target, Flows]] = {}
    for (frontend, target), each in counts.items():
        flows.setdefault(frontend, {})[target] = each
    clashes: dict[str, list[str]] = {}
    for clash in seen.index.clashes:
        clashes.setdefault(clash.refused, []).append(str(clash))
    return [_service(seen, flows, name, clashes.get(name, [])) for name in names]


def _service(seen: Seen, flows: _Flows, name: str, clashes: list[str]) -> dict[str, Any]:
    service, index = seen.stored.services[name], seen.index
    spec = service.spec
    frontends = sorted(each for each in index.served(name).frontends if index.owner(each) == name)
    return {
        "name": name,
        "type": spec.type,
        "proxied": is_proxied(service),
        "internalTrafficPolicy": spec.internal_traffic_policy,
        "externalTrafficPolicy": spec.external_traffic_policy or None,
        "trafficDistribution": spec.traffic_distribution or None,
        "affinitySeconds": affinity_of(service) or None,
        "balance": balance_of(service),
        "sourceRanges": list(spec.load_balancer_source_ranges),
        "healthCheckNodePort": spec.health_check_node_port or None,
        "frontends": [_frontend(seen, flows, service, each) for each in frontends],
        "clashes": clashes,
        "endpoints": [
            _endpoint(seen, each) for slice_ in index.slices(name) for each in slice_.endpoints if each.addresses
        ],
    }


def _frontend(seen: Seen, counted: _Flows, service: Service, key: Key) -> dict[str, Any]:
    frontend, wanted = unpack_frontend(key), seen.index.wanted(key)
    port = port_of(service, frontend)
    targets = sorted(map(unpack_target, wanted.targets)) if wanted else []
    flows = counted.get(frontend, {})
    outside = None if wanted is None or wanted.outside is None else len(wanted.outside)
    return {
        "address": frontend.address,
        "port": frontend.port,
        "protocol": frontend.protocol,
        "portName": port.name if port else "",
        "kind": _kind(service, frontend),
        "does": _does(wanted),
        "reachesOutside": outside,
        "problem": seen.index.left_out.get(key) or _problem(seen, key),
        "endpoints": [
            {
                "address": target.address,
                "port": target.port,
                "node": seen.names.node(target.address),
                "serving": target in targets,
                "connections": found.connections,
                "bytes": found.bytes,
            }
            for target in sorted({*targets, *flows})
            for found in (flows.get(target, _NO_FLOWS),)
        ],
    }


def _kind(service: Service, frontend: Frontend) -> str:
    spec = service.spec
    if frontend.address in {*spec.cluster_ips, spec.cluster_ip}:
        return "cluster"
    if frontend.address in {each.ip for each in service.status.load_balancer.ingress}:
        return "load-balancer"
    return "external" if frontend.address in spec.external_ips else "node-port"


def _does(wanted: Wanted | None) -> str:
    if wanted is None:
        return "left out"
    if wanted.inside or wanted.outside:
        return "serve"
    return "drop" if wanted.drop else "refuse"


def _problem(seen: Seen, key: Key) -> str:
    """What the kernel has otherwise than it is wanted."""
    tables = seen.kernel.tables.get(family_of(key))
    if tables is None:
        return f"the kernel has no table for {family_of(key)}"
    return "the kernel has it otherwise: proxyd plan" if plan_changes(tables, seen.index, Touched({key})).now else ""


def _endpoint(seen: Seen, endpoint: Endpoint) -> dict[str, Any]:
    conditions = endpoint.conditions
    here = endpoint.node_name in {"", seen.index.place.node}
    state = "ready" if conditions.ready else "serving, terminating"
    if not conditions.ready and not (conditions.serving and conditions.terminating):
        state = "terminating" if conditions.terminating else "not ready"
    return {
        "address": endpoint.addresses[0],
        "node": endpoint.node_name,
        "zone": endpoint.zone,
        "local": here,
        "state": state,
        "pod": endpoint.target_ref.name if endpoint.target_ref else "",
    }


# --- for people ----------------------------------------------------------------------


def render(found: Sequence[Mapping[str, Any]], *, wide: bool) -> str:
    """A line for each frontend; with `wide` one for each endpoint behind it."""
    header = ["SERVICE", "TYPE", "FRONTEND", "PORT", "LEADS TO"]
    if wide:
        header[4:] = ["ENDPOINT", "NODE", "STATE", "CONNECTIONS", "BYTES"]
    else:
        header += ["SPREAD", "CONNECTIONS"]
    rows: list[list[str]] = []
    for service in found:
        for frontend in service["frontends"]:
            head = [service["name"], service["type"], _address(frontend), frontend["portName"] or "-"]
            if not wide:
                connections = sum(each["connections"] for each in frontend["endpoints"])
                rows.append([*head, _leads_to(frontend), _spread(service), str(connections)])
                continue
            rows += [[*head, *_wide(service, each)] for each in frontend["endpoints"]]
            if not frontend["endpoints"]:
                rows.append([*head, f"none: {_leads_to(frontend)}", "-", "-", "-", "-"])
        if not service["frontends"]:
            why = "another service has its address" if service["clashes"] else "not proxied"
            rows.append([service["name"], service["type"], "-", "-", why, *["-"] * (4 if wide else 2)])
    return table([header, *rows])


def render_one(service: Mapping[str, Any], *, wide: bool) -> str:
    """Everything about one service."""
    policies = [f"internal {service['internalTrafficPolicy']}"]
    if service["externalTrafficPolicy"]:
        policies.append(f"external {service['externalTrafficPolicy']}")
    if service["trafficDistribution"]:
        policies.append(service["trafficDistribution"])
    lines = [
        ("Service", f"{service['name']}, {service['type']}"),
        ("Policy", ", ".join(policies)),
        ("Spread", _spread(service)),
    ]
    if service["sourceRanges"]:
        lines.append(("Sources", ", ".join(service["sourceRanges"])))
    if service["healthCheckNodePort"]:
        lines.append(("Health check", f"port {service['healthCheckNodePort']}"))
    if not service["proxied"]:
        lines.append(("Proxied", "no: it is headless, external, or another proxy's"))
    lines += [("Clash", text) for text in service["clashes"]]
    parts = [table([[f"{name}:", text] for name, text in lines])]
    if service["frontends"]:
        rows = [["FRONTEND", "KIND", "PORT", "LEADS TO"]]
        rows += [[_address(f), f["kind"], f["portName"] or "-", _leads_to(f)] for f in service["frontends"]]
        parts.append(table(rows))
    rows = [["ENDPOINT", "NODE", "WHERE", "STATE", "POD"]]
    for each in service["endpoints"]:
        where = "here" if each["local"] else "elsewhere"
        rows.append([each["address"], each["node"] or "-", where, each["state"], each["pod"] or "-"])
    parts.append(table(rows) if service["endpoints"] else "No endpoints: no pod matches its selector.")
    if wide and service["frontends"]:
        parts.append(render([service], wide=True))
    return "\n\n".join(parts)


def _address(frontend: Mapping[str, Any]) -> str:
    return str(Frontend(frontend["address"], frontend["protocol"], frontend["port"]))


def _leads_to(frontend: Mapping[str, Any]) -> str:
    number = sum(each["serving"] for each in frontend["endpoints"])
    text = {
        "serve": f"{number} endpoint{'s' if number != 1 else ''}",
        "refuse": "refused, no endpoint",
        "drop": "dropped, no endpoint here",
        "left out": "NOT SERVED",
    }[frontend["does"]]
    if frontend["reachesOutside"] is not None:
        text += f", {frontend['reachesOutside'] or 'none'} for clients outside"
    return text + (f" ({frontend['problem']})" if frontend["problem"] else "")


def _spread(service: Mapping[str, Any]) -> str:
    text = str(service["balance"]) if service["balance"] != RANDOM else "at random"
    if service["affinitySeconds"]:
        text += f", a client stays for {human_duration(service['affinitySeconds'])}"
    return text


def _wide(service: Mapping[str, Any], endpoint: Mapping[str, Any]) -> list[str]:
    state = next((each["state"] for each in service["endpoints"] if each["address"] == endpoint["address"]), "gone")
    if not endpoint["serving"]:
        state = f"{state}, gets no new ones"
    return [
        str(Target(endpoint["address"], endpoint["port"])),
        endpoint["node"] or "-",
        state,
        str(endpoint["connections"]),
        "-" if endpoint["bytes"] is None else str(endpoint["bytes"]),
    ]


def owner_of(seen: Seen, text: str) -> str | None:
    """The service of that name, or that has this address; None when there is none."""
    name = text if "/" in text else f"default/{text}"
    if name in seen.stored.services:
        return name
    for each, service in seen.stored.services.items():
        if text in {service.spec.cluster_ip, *service.spec.cluster_ips}:
            return each
    return None
