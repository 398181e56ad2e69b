"""`podlane init`: the two settings a cluster cannot be without.

Owns: flannel's network config (what the pods' addresses are, and how packets
travel) and the cluster config (what the services' addresses are, the node
timing, the agents' token). Invariants: nothing is written before both were
compared with what is stored; the same init again changes nothing, and finishes
one that was interrupted between the two; a different one is refused with the
difference, unless --force, and then the token stays, because running agents
know it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import click

from podlane.cli.command import Command, fail, pass_session, warn
from podlane.cli.options import dry_run_option
from podlane.cli.session import Session
from podlane.errors import FieldError, Invalid, PodlaneError

if TYPE_CHECKING:
    from podlane.api.ranges import Network
    from podlane.api.types import ClusterConfig
    from podlane.store.interface import KeyValue

FLANNEL_PREFIX = "/coreos.com/network"
TOKEN_BYTES = 32


@dataclass(frozen=True, slots=True)
class Settings:
    """What init writes: flannel's config as flannel spells it, and ours."""

    network: dict[str, Any]
    cluster: ClusterConfig


@click.command("init", cls=Command)
@click.option(
    "--network",
    default="10.244.0.0/16",
    show_default=True,
    metavar="CIDR[,CIDR]",
    help="Addresses of the pods; with two, IPv4 and IPv6, of which a node gets a /64.",
)
@click.option("--subnet-len", type=int, help="Prefix length of a node's share of IPv4 (default: flannel's, 24).")
@click.option(
    "--service-cidr",
    default="10.96.0.0/16",
    show_default=True,
    metavar="CIDR[,CIDR]",
    help="Addresses of the services; with two, one range a family, the first is that of services that do not choose.",
)
@click.option(
    "--service-node-port-range",
    default="30000-32767",
    show_default=True,
    metavar="FROM-TO",
    help="Ports on every node for services of type NodePort and LoadBalancer.",
)
@click.option(
    "--backend",
    type=click.Choice(["vxlan", "host-gw"]),
    default="vxlan",
    show_default=True,
    help="How packets travel between nodes.",
)
@click.option("--vni", type=int, default=1, show_default=True, help="VXLAN network identifier.")
@click.option("--port", type=int, default=8472, show_default=True, help="UDP port of VXLAN.")
@click.option("--mtu", type=int, default=0, show_default=True, help="MTU of the underlay; 0: the interface's.")
@click.option("--direct-routing", is_flag=True, help="Plain routes to nodes on the same link, VXLAN to the others.")
@click.option("--cluster-domain", default="cluster.local", show_default=True, help="DNS domain of the services.")
@click.option(
    "--node-lease-seconds",
    type=click.IntRange(min=2),
    default=10,
    show_default=True,
    help="How long a silent node counts as alive.",
)
@click.option(
    "--node-grace-seconds",
    type=click.IntRange(min=0),
    default=5,
    show_default=True,
    help="How long after that its pods are replaced.",
)
@click.option(
    "--node-not-ready-seconds",
    type=click.IntRange(min=0),
    default=300,
    show_default=True,
    help="How long pods stay on a node that lives and is not ready.",
)
@click.option(
    "--node-eviction-share",
    type=click.FloatRange(0, 1),
    default=0.25,
    show_default=True,
    help="Of all nodes, those whose pods may be replaced within ten seconds; at least one.",
)
@click.option("--etcd-prefix", default=FLANNEL_PREFIX, show_default=True, help="flannel's prefix in etcd.")
@click.option("--force", is_flag=True, help="Replace a configuration that differs.")
@dry_run_option
@pass_session
def init(session: Session, /, *, etcd_prefix: str, force: bool, dry_run: bool, **given: Any) -> None:
    """Write the network and the cluster configuration into etcd.

    The same settings again change nothing; different ones are refused and the
    difference is shown.
    """
    from podlane.api.subnets import config_key
    from podlane.cli.merge import differences

    settings = desired(**given)
    key = config_key(etcd_prefix)
    stored: KeyValue | None = None
    old: ClusterConfig | None = None
    if not dry_run or _answers(session):
        stored, old = session.store.get(key), _read_cluster(session)
    before = {"network": _meaning(key, stored), "cluster": _visible(old)}
    after = {"network": _canonical(settings.network), "cluster": _visible(settings.cluster)}
    same = {part: before[part] == after[part] for part in before}
    existing = [part for part in before if before[part] is not None]
    changes = differences({p: before[p] for p in existing}, {p: after[p] for p in existing})
    if changes and not force:
        fail("init: the cluster is configured differently; --force replaces it:\n" + "\n".join(changes))
    if changes:
        warn(["nodes and services keep their old addresses until they are restarted or created anew", *changes])
    if dry_run:
        _print(settings, key)
    else:
        if not same["network"]:
            _write_network(session, key, settings.network, stored)
        if not same["cluster"] or not (old and old.agent_token):
            _write_cluster(session, settings.cluster, old)
    suffix = " (dry run)" if dry_run else ""
    for part, old_value in before.items():
        verb = "created" if old_value is None else "unchanged" if same[part] else "configured"
        click.echo(f"{part} {verb}{suffix}")


def check_arguments(arguments: Sequence[str]) -> None:
    """That `init` would take these. Raises click.UsageError, Invalid."""
    given = init.make_context("podlane init", list(arguments)).params
    desired(**{name: value for name, value in given.items() if name not in {"etcd_prefix", "force", "dry_run"}})


def desired(
    *,
    network: str,
    subnet_len: int | None,
    service_cidr: str,
    service_node_port_range: str,
    backend: str,
    vni: int,
    port: int,
    mtu: int,
    direct_routing: bool,
    cluster_domain: str,
    **timing: Any,
) -> Settings:
    """Check the options. Raises Invalid with everything that is wrong, the overlap of the ranges too."""
    from podlane.api.network import parse_config
    from podlane.api.ranges import parse_networks, parse_ports
    from podlane.api.types import ClusterConfig

    options: dict[str, Any] = {"Type": backend}
    if backend == "vxlan":
        options |= {"VNI": vni, "Port": port}
        options |= {"DirectRouting": True} if direct_routing else {}
        options |= {"MTU": mtu} if mtu else {}
    share = {} if subnet_len is None else {"SubnetLen": subnet_len}
    errors: list[FieldError] = []
    config = {**_families(network, errors), **share, "Backend": options}
    pods: tuple[Network, ...] = ()
    networks: tuple[Network, ...] = ()
    try:
        pods = parse_config(json.dumps(config), "").networks
    except Invalid as error:
        errors += error.errors
    try:
        networks = parse_networks(service_cidr)
    except Invalid as error:
        errors += [FieldError("--service-cidr", e.message) for e in error.errors]
    try:
        parse_ports(service_node_port_range)
    except Invalid as error:
        errors += [FieldError("--service-node-port-range", e.message) for e in error.errors]
    errors += [
        FieldError("--service-cidr", f"{services} overlaps the pods' network {pod_network}")
        for services in networks
        for pod_network in pods
        if pod_network.version == services.version and pod_network.overlaps(services)
    ]
    if errors:
        raise Invalid("init", errors)
    cluster = ClusterConfig(
        service_cidr=",".join(map(str, networks)),
        service_node_port_range=service_node_port_range,
        cluster_domain=cluster_domain,
        **timing,
    )
    return Settings(config, cluster)


def _families(text: str, errors: list[FieldError]) -> dict[str, Any]:
    """The fields of flannel's config for one network, or one of each family."""
    fields: dict[str, Any] = {}
    for part in text.split(","):
        name = "IPv6Network" if ":" in part else "Network"
        if name in fields:
            errors.append(FieldError("--network", f"expected one network, or one of each family, got {text}"))
        fields[name] = part.strip()
    if "IPv6Network" in fields:
        fields["EnableIPv6"] = True
    if "Network" not in fields:
        fields["EnableIPv4"] = False
    return fields


def _answers(session: Session) -> bool:
    """Whether a store is there to compare with; --dry-run works without."""
    try:
        session.store.get("/podlane/config")
    except PodlaneError:
        return False
    return True


def _meaning(key: str, stored: KeyValue | None) -> dict[str, str] | None:
    """The stored network config. Raises PodlaneError when it is no JSON object."""
    if stored is None:
        return None
    try:
        value = json.loads(stored.value)
    except ValueError as error:
        raise PodlaneError(f"read {key}: not JSON: {error}") from error
    if not isinstance(value, dict):
        raise PodlaneError(f"read {key}: expected a JSON object")
    return _canonical(value)


def _read_cluster(session: Session) -> ClusterConfig | None:
    from podlane.errors import NotFound

    try:
        return session.registry.cluster_config()
    except NotFound:
        return None


def _canonical(config: dict[str, Any]) -> dict[str, str]:
    """A config's meaning, defaults filled in: two that mean the same compare equal."""
    import dataclasses

    from podlane.api.network import parse_config

    try:
        parsed = dataclasses.asdict(parse_config(json.dumps(config)))
    except Invalid:
        return {"config": json.dumps(config, sort_keys=True)}
    backend = parsed.pop("backend")
    fields = {**parsed, **{f"backend.{name}": value for name, value in backend.items()}}
    return {name: str(value) for name, value in fields.items()}


def _visible(config: ClusterConfig | None) -> dict[str, Any] | None:
    """Everything but the token, which is nobody's to compare or to print."""
    if config is None:
        return None
    from podlane.api.codec import to_builtins

    return {name: value for name, value in to_builtins(config).items() if name != "agentToken"}


def _print(settings: Settings, network_key: str) -> None:
    from podlane.store.keys import CLUSTER_CONFIG

    click.echo(f"{network_key} {json.dumps(settings.network)}")
    click.echo(f"{CLUSTER_CONFIG} {json.dumps(_visible(settings.cluster))}")


def _write_network(session: Session, key: str, config: dict[str, Any], read: KeyValue | None) -> None:
    from podlane.store.interface import Compare, Put

    unchanged = Compare.absent(key) if read is None else Compare.modified_at(key, read.mod_revision)
    if not session.store.txn([unchanged], [Put(key, json.dumps(config).encode())]).succeeded:
        raise PodlaneError("init: someone else configured the network at the same time; run it again")


def _write_cluster(session: Session, config: ClusterConfig, read: ClusterConfig | None) -> None:
    import secrets

    import msgspec

    token = (read.agent_token if read else "") or secrets.token_urlsafe(TOKEN_BYTES)
    session.registry.init_cluster(msgspec.structs.replace(config, agent_token=token), overwrite=read is not None)
