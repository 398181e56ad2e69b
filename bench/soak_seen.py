"""What the soak looks at once a cluster ought to be quiet, and what is wrong with it.

Owns: one look at everything (`observe`: the store, etcd's leases, each host's
containers, links, namespaces and cgroups) and the rules it must keep
(`violations`, pure). Invariant: nothing is believed of the daemons; containers
come from Docker, links and namespaces from the kernel, leases from etcd.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import grpc
from etcd3 import etcdrpc

from podlane.api.meta import is_pod_finished, is_pod_ready
from podlane.api.types import SERVICE_NAME_LABEL, EndpointSlice, Node, Pod, ReplicationController, Service
from podlane.errors import PodlaneError
from podlane.lab.cluster import DaemonStatus, Lab
from podlane.lab.network import within
from podlane.lab.residue import CGROUP_ROOT
from podlane.lab.topology import Host
from podlane.runtime.command import run
from podlane.store import keys
from podlane.store.registry import Registry
from podlane.store.roles import ROOT
from podlane.store.wire import key_text

INFRA = "POD"
SHORT_LEASE = 60
"""Seconds: leases of heartbeats, elections and acknowledgements are shorter, those of events and mirrors longer."""
_LABELS = ("podlane.io/pod-uid", "podlane.io/container-name")


@dataclass(frozen=True, slots=True)
class Box:
    """A container as Docker lists it."""

    id: str
    pod_uid: str
    container: str
    running: bool


@dataclass(frozen=True, slots=True)
class HostSeen:
    """A host's own view. `veths`: links to pods; `netns`: network namespaces with processes of containers;
    `cgroups` and `shims`: ids of containers that have one.
    """

    boxes: tuple[Box, ...] = ()
    veths: int = 0
    netns: int = 0
    cgroups: frozenset[str] = frozenset()
    shims: frozenset[str] = frozenset()


@dataclass(frozen=True, slots=True)
class LeaseSeen:
    """An etcd lease: the seconds it was granted for, and the keys that end with it."""

    id: str
    granted: int
    keys: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Seen:
    """Everything at about one moment. `bindings`: for each "namespace/name" the nodes that have it."""

    pods: tuple[Pod, ...] = ()
    controllers: tuple[ReplicationController, ...] = ()
    services: tuple[Service, ...] = ()
    slices: tuple[EndpointSlice, ...] = ()
    nodes: tuple[Node, ...] = ()
    bindings: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    service_ips: frozenset[str] = frozenset()
    leases: tuple[LeaseSeen, ...] = ()
    hosts: Mapping[str, HostSeen] = field(default_factory=dict)
    daemons: tuple[DaemonStatus, ...] = ()


# --- what is wrong (pure) --------------------------------------------------------------------


def violations(seen: Seen) -> list[str]:
    """Everything that must not be once the cluster is quiet, sorted; empty: all is well."""
    found = [
        *_daemons(seen),
        *_nodes(seen),
        *_counts(seen),
        *_pods(seen),
        *_addresses(seen.pods),
        *_services(seen),
        *_leases(seen),
    ]
    for name, host in seen.hosts.items():
        found += [f"{name}: {text}" for text in _host(host, [p for p in seen.pods if p.spec.node_name == name])]
    return sorted(found)


def shared_addresses(pods: Iterable[Pod]) -> list[str]:
    """Addresses that more than one live pod has: one that runs and is not told to end, or is still ready."""
    live: dict[str, list[str]] = {}
    for pod in pods:
        ending = pod.metadata.deletion_timestamp is not None and not is_pod_ready(pod)
        if pod.status.pod_ip and not ending and not is_pod_finished(pod):
            live.setdefault(pod.status.pod_ip, []).append(_ref(pod))
    return [f"address {ip} is shared by {', '.join(sorted(of))}" for ip, of in sorted(live.items()) if len(of) > 1]


def _daemons(seen: Seen) -> Iterator[str]:
    for s in seen.daemons:
        if s.state != "running":
            yield f"{s.host}: {s.daemon} is {s.state}: {s.detail}"


def _nodes(seen: Seen) -> Iterator[str]:
    for node in seen.nodes:
        if not any(c.type == "Ready" and c.status == "True" for c in node.status.conditions):
            yield f"node {node.metadata.name} is not ready"
    missing = seen.hosts.keys() - {n.metadata.name for n in seen.nodes}
    yield from (f"node {name} is not registered" for name in missing)


def _counts(seen: Seen) -> Iterator[str]:
    for rc in seen.controllers:
        name, wanted = rc.metadata.name, rc.spec.replicas
        mine = [p for p in seen.pods if any(o.uid == rc.metadata.uid for o in p.metadata.owner_references)]
        active = [p for p in mine if not is_pod_finished(p) and p.metadata.deletion_timestamp is None]
        ready = sum(is_pod_ready(p) for p in active)
        if len(active) != wanted or ready != wanted:
            yield f"rc {name}: {wanted} wanted, {len(active)} active, {ready} ready"
        elif (rc.status.replicas, rc.status.ready_replicas) != (wanted, wanted):
            yield f"rc {name}: status says {rc.status.replicas} replicas, {rc.status.ready_replicas} ready of {wanted}"


def _pods(seen: Seen) -> Iterator[str]:
    for pod in seen.pods:
        ref, where = _ref(pod), seen.bindings.get(f"{pod.metadata.namespace}/{pod.metadata.name}", ())
        if pod.metadata.deletion_timestamp is not None:
            yield f"pod {ref} is ending"
        if not pod.metadata.owner_references:
            yield f"pod {ref} has no owner"
        if where != ((pod.spec.node_name,) if pod.spec.node_name else ()):
            yield f"pod {ref} is on {pod.spec.node_name or 'no node'}, its bindings on {', '.join(where) or 'none'}"
    known = {f"{p.metadata.namespace}/{p.metadata.name}" for p in seen.pods}
    yield from (
        f"binding of {key} on {', '.join(seen.bindings[key])} has no pod" for key in seen.bindings.keys() - known
    )


def _addresses(pods: Iterable[Pod]) -> Iterator[str]:
    yield from shared_addresses(pods)


def _services(seen: Seen) -> Iterator[str]:
    addresses = Counter(ip for s in seen.services for ip in s.spec.cluster_ips if ip != "None")
    yield from (f"service address {ip} is shared" for ip, count in addresses.items() if count > 1)
    if seen.service_ips != addresses.keys():
        yield f"allocated service addresses {sorted(seen.service_ips)}, used {sorted(addresses)}"
    for service in seen.services:
        if not service.spec.selector:
            continue
        wanted = {
            p.status.pod_ip
            for p in seen.pods
            if service.spec.selector.items() <= p.metadata.labels.items() and is_pod_ready(p)
        }
        listed = {
            address
            for item in seen.slices
            if item.metadata.labels.get(SERVICE_NAME_LABEL) == service.metadata.name
            for endpoint in item.endpoints
            if endpoint.conditions.ready
            for address in endpoint.addresses
        }
        if wanted != listed:
            yield f"service {service.metadata.name}: pods {sorted(wanted)}, endpoints {sorted(listed)}"


def _leases(seen: Seen) -> Iterator[str]:
    """Short leases hold something, and a heartbeat for each node is one of them; long ones run out by themselves."""
    for lease in seen.leases:
        if lease.granted <= SHORT_LEASE and not lease.keys:
            yield f"lease {lease.id} of {lease.granted} s holds nothing"
    prefix = "/registry/leases/kube-node-lease/"
    beating = Counter(k.removeprefix(prefix) for lease in seen.leases for k in lease.keys if k.startswith(prefix))
    if seen.leases and beating != Counter(n.metadata.name for n in seen.nodes):
        yield f"heartbeats of {sorted(beating.elements())}, nodes {sorted(n.metadata.name for n in seen.nodes)}"


def _host(host: HostSeen, pods: list[Pod]) -> Iterator[str]:
    by_pod: dict[str, Counter[str]] = {}
    for box in host.boxes:
        by_pod.setdefault(box.pod_uid, Counter())[box.container] += box.running
    for pod in pods:
        running = +by_pod.pop(pod.metadata.uid, Counter())
        wanted = Counter([INFRA, *(ct.name for ct in pod.spec.containers)])
        if running != wanted:
            yield f"pod {_ref(pod)} runs {_words(running)}, not {_words(wanted)}"
    for uid, containers in by_pod.items():
        yield f"containers of no pod here ({uid}): {_words(containers) or 'ended ones'}"
    running_boxes = frozenset(box.id for box in host.boxes if box.running)
    infra = sum(box.running and box.container == INFRA for box in host.boxes)
    if host.veths != infra:
        yield f"{host.veths} veths for {infra} pods"
    if host.netns != infra:
        yield f"{host.netns} network namespaces for {infra} pods"
    for what, ids in (("cgroup", host.cgroups), ("shim", host.shims)):
        yield from (f"{what} of {each[:12]}, which does not run" for each in ids - running_boxes)


def _ref(pod: Pod) -> str:
    return f"{pod.metadata.name} ({pod.metadata.uid[:8]})"


def _words(names: Counter[str]) -> str:
    return ", ".join(f"{name}×{count}" if count > 1 else name for name, count in sorted(names.items()) if count)


# --- looking ---------------------------------------------------------------------------------


def observe(lab: Lab, registry: Registry) -> Seen:
    """Look at everything. Raises PodlaneError. The calling thread is in the lab's underlay."""
    nodes = [h for h in lab.topology.hosts if h.role == "node"]
    with ThreadPoolExecutor(len(nodes)) as pool:
        hosts = dict(zip((h.name for h in nodes), pool.map(lambda h: _look(lab, h), nodes), strict=True))
    bindings: dict[str, tuple[str, ...]] = {}
    for kv in registry.store.list(keys.BINDINGS).items:
        node, _, name = kv.key.removeprefix(keys.BINDINGS).partition("/")
        bindings[name] = (*bindings.get(name, ()), node)
    return Seen(
        pods=registry.list(Pod).items,
        controllers=registry.list(ReplicationController).items,
        services=registry.list(Service).items,
        slices=registry.list(EndpointSlice).items,
        nodes=registry.list(Node).items,
        bindings=bindings,
        service_ips=frozenset(
            kv.key.removeprefix(keys.SERVICE_IPS) for kv in registry.store.list(keys.SERVICE_IPS).items
        ),
        leases=_leases_of(lab),
        hosts=hosts,
        daemons=tuple(lab.status()),
    )


def _look(lab: Lab, host: Host) -> HostSeen:
    topology = lab.topology
    docker = ["docker", "-H", f"unix://{topology.docker_socket(host)}", "ps", "-a", "--no-trunc"]
    form = "\t".join(("{{.ID}}", "{{.State}}", *(f'{{{{.Label "{label}"}}}}' for label in _LABELS)))
    lines = run([*docker, "--filter", f"label={_LABELS[0]}", "--format", form], timeout=20).stdout.splitlines()
    boxes = [Box(i, uid, name, state == "running") for i, state, uid, name in (line.split("\t") for line in lines)]
    links = json.loads(
        run(within(topology.netns(host), ["ip", "-j", "link", "show", "type", "veth"]), timeout=10).stdout
    )
    folder = CGROUP_ROOT / topology.cgroup.lstrip("/") / host.name
    folders = [p for p in (folder, *CGROUP_ROOT.glob(f"*/{topology.cgroup.lstrip('/')}/{host.name}")) if p.is_dir()]
    return HostSeen(
        boxes=tuple(boxes),
        veths=sum(link["ifname"] != "eth0" for link in links),
        netns=len(_namespaces(folders)),
        cgroups=frozenset(p.name for each in folders for p in each.iterdir() if len(p.name) == 64),
        shims=_shims(str(topology.run_dir / host.name)),
    )


def _namespaces(folders: Iterable[Path]) -> set[int]:
    """Network namespaces of the processes in these cgroups."""
    found = set()
    for folder in folders:
        for file in folder.glob("*/cgroup.procs"):
            with suppress(OSError):  # it has ended meanwhile
                found |= {Path(f"/proc/{pid}/ns/net").stat().st_ino for pid in file.read_text().split()}
    return found


def _shims(folder: str) -> frozenset[str]:
    """Ids of the containers that a containerd below this folder has a shim for."""
    found = set()
    for proc in Path("/proc").iterdir():
        if proc.name.isdigit():
            with suppress(OSError, ValueError, IndexError):
                words = (proc / "cmdline").read_bytes().decode(errors="replace").split("\0")
                if "containerd-shim" in words[0] and words[words.index("-address") + 1].startswith(f"{folder}/"):
                    found.add(words[words.index("-id") + 1])
    return frozenset(found)


def _leases_of(lab: Lab) -> tuple[LeaseSeen, ...]:
    """From etcd itself, which lists leases for its administrator."""
    config = lab.topology.store_config(ROOT)
    ca, key, certificate = (Path(file).read_bytes() for file in (config.cafile, config.keyfile, config.certfile))
    for target, _ in config.targets:
        channel = grpc.secure_channel(target, grpc.ssl_channel_credentials(ca, key, certificate))
        with channel, suppress(grpc.RpcError):
            return tuple(_listed(channel))
    raise PodlaneError("list leases: no etcd member answers")


def _listed(channel: grpc.Channel) -> Iterator[LeaseSeen]:
    # no stub has this method; its answer is shaped as a list of members is: a header, and entries that begin with an id
    answer = etcdrpc.MemberListResponse.FromString
    leases = channel.unary_unary("/etcdserverpb.Lease/LeaseLeases", lambda _: b"", answer)
    look = etcdrpc.LeaseStub(channel).LeaseTimeToLive
    for each in leases(None, timeout=5).members:
        seen = look(etcdrpc.LeaseTimeToLiveRequest(ID=each.ID, keys=True), timeout=5)
        if seen.TTL > 0:
            yield LeaseSeen(f"{seen.ID:x}", seen.grantedTTL, tuple(map(key_text, seen.keys)))
