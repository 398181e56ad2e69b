"""The addresses of the proxyd tests' world, one `Net` a family, and services and slices in one line each.

Pods go by their names here: pod1, pod2 and pod3 are on the node, far is behind
another one. Whoever reads a test need not know which address is whose.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from socket import AF_INET, AF_INET6
from typing import Any, NamedTuple

import pytest

from podlane.api.types import (
    BALANCE_ANNOTATION,
    SERVICE_NAME_LABEL,
    ClientIPConfig,
    Endpoint,
    EndpointConditions,
    EndpointHints,
    EndpointPort,
    EndpointSlice,
    LoadBalancerIngress,
    LoadBalancerStatus,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
    ServiceStatus,
    SessionAffinityConfig,
)
from proxyd.tables import IPV4, IPV6, Family

POD1, POD2, POD3, FAR = "pod1", "pod2", "pod3", "far"


@dataclass(frozen=True)
class Net:
    """`clients`: a network of the client's, where any address can be a source (`World.call(source=...)`).

    `external` and `balancer`: addresses of nobody, routed to the node.
    """

    family: Family
    af: int
    vip: str
    other_vip: str
    unallocated: str
    service_range: str
    pod_network: str
    node: str
    node_elsewhere: str
    """Another address of the node, of the link to far."""
    client: str
    clients: str
    bridge: str
    pods: Mapping[str, str]
    external: str
    balancer: str
    wide: int
    """Prefix length of a link."""

    @property
    def name(self) -> str:
        """As nft has it."""
        return self.family.name

    def lan(self, address: str) -> str:
        """The network an address is in, in CIDR form."""
        return str(ipaddress.ip_network(f"{address}/{self.wide}", strict=False))

    def source(self, number: int) -> str:
        """One of the client's many addresses."""
        return f"{self.clients}{number:x}" if self.family is IPV6 else f"{self.clients}{number}"


V4 = Net(
    family=IPV4,
    af=AF_INET,
    vip="10.96.0.1",
    other_vip="10.96.0.2",
    unallocated="10.96.7.7",
    service_range="10.96.0.0/16",
    pod_network="10.5.0.0/16",
    node="192.168.64.11",
    node_elsewhere="172.16.0.1",
    client="192.168.64.1",
    clients="198.51.100.",
    bridge="10.5.1.1",
    pods={POD1: "10.5.1.2", POD2: "10.5.1.3", POD3: "10.5.1.4", FAR: "10.5.2.2"},
    external="203.0.113.1",
    balancer="203.0.113.2",
    wide=24,
)
V6 = Net(
    family=IPV6,
    af=AF_INET6,
    vip="fd00:96::1",
    other_vip="fd00:96::2",
    unallocated="fd00:96::77",
    service_range="fd00:96::/112",
    pod_network="fd00:5::/48",
    node="fd00:c0a8:40::11",
    node_elsewhere="fd00:16::1",
    client="fd00:c0a8:40::1",
    clients="2001:db8:51::",
    bridge="fd00:5:0:1::1",
    pods={POD1: "fd00:5:0:1::2", POD2: "fd00:5:0:1::3", POD3: "fd00:5:0:1::4", FAR: "fd00:5:0:2::2"},
    external="2001:db8:113::1",
    balancer="2001:db8:113::2",
    wide=64,
)
NETS = (V4, V6)
BOTH = pytest.mark.parametrize("net", NETS, ids=lambda net: net.name)


class Port(NamedTuple):
    """A service's port and the pod's."""

    protocol: str
    port: int
    target: int
    node_port: int = 0

    @property
    def name(self) -> str:
        return f"{self.protocol}-{self.port}".lower()


TCP = Port("TCP", 80, 8080)
UDP = Port("UDP", 53, 5353)
NODE_TCP = TCP._replace(node_port=30080)
NODE_UDP = UDP._replace(node_port=30053)


def service(
    net: Net,
    *ports: Port,
    name: str = "web",
    ip: str = "",
    balance: str = "",
    affinity: int = 0,
    balancer: bool = False,
    **spec: Any,
) -> Service:
    """`affinity`: seconds; `balancer`: it has the net's load-balancer address; `spec`: what else is in it."""
    if affinity:
        spec["session_affinity"] = "ClientIP"
        spec["session_affinity_config"] = SessionAffinityConfig(client_ip=ClientIPConfig(timeout_seconds=affinity))
    if balancer:
        spec["type"] = "LoadBalancer"
    elif any(port.node_port for port in ports):
        spec["type"] = "NodePort"
    spec.setdefault("cluster_ips", (ip or net.vip,))
    return Service(
        metadata=ObjectMeta(
            name=name, namespace="default", annotations={BALANCE_ANNOTATION: balance} if balance else {}
        ),
        spec=ServiceSpec(
            cluster_ip=spec["cluster_ips"][0],
            ports=tuple(
                ServicePort(name=p.name, port=p.port, protocol=p.protocol, node_port=p.node_port)  # type: ignore[arg-type]
                for p in ports or (TCP,)
            ),
            **spec,
        ),
        status=ServiceStatus(
            load_balancer=LoadBalancerStatus(ingress=(LoadBalancerIngress(ip=net.balancer),) if balancer else ())
        ),
    )


def endpoint(
    net: Net, pod: str, *, ready: bool = True, terminating: bool = False, hints: EndpointHints | None = None
) -> Endpoint:
    """One on its node; a terminating one is not ready and still serves."""
    return Endpoint(
        addresses=(net.pods[pod],),
        conditions=EndpointConditions(
            ready=ready and not terminating, serving=ready or terminating, terminating=terminating
        ),
        node_name="far" if pod == FAR else "node",
        hints=hints,
    )


def endpoints(
    net: Net, pods: Sequence[str | Endpoint], *ports: Port, name: str = "web", part: str = ""
) -> EndpointSlice:
    """The service's slice of that family; `part` names another one. A pod's name stands for a ready endpoint."""
    return EndpointSlice(
        metadata=ObjectMeta(name=f"{name}-{net.name}{part}", namespace="default", labels={SERVICE_NAME_LABEL: name}),
        address_type=net.family.title,  # type: ignore[arg-type] # one of the two
        endpoints=tuple(endpoint(net, each) if isinstance(each, str) else each for each in pods),
        ports=tuple(EndpointPort(name=p.name, port=p.target, protocol=p.protocol) for p in ports or (TCP,)),  # type: ignore[arg-type]
    )


def web(
    net: Net, pods: Sequence[str | Endpoint], *ports: Port, name: str = "web", **spec: Any
) -> tuple[Service, EndpointSlice]:
    """A service and its slice; by default TCP 80 to 8080."""
    return service(net, *ports, name=name, **spec), endpoints(net, pods, *ports, name=name)
