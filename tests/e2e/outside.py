"""Services as somebody outside of every host meets them: objects to apply, and clients on the underlay."""

from __future__ import annotations

import http.client
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import Any

import msgspec
import yaml
from driven_lab import Cluster

from podlane.api.meta import is_pod_ready
from podlane.api.types import Pod, Service
from podlane.lab import network
from podlane.lab.demo import EXAMPLES
from podlane.lab.topology import UNDERLAY_PREFIX, Host
from podlane.runtime.command import run

CLIENT = f"{UNDERLAY_PREFIX}.1"
"""The underlay's own address."""

CALLER = "/cgi-bin/caller"
PATIENCE = 5.0
"""Seconds for an answer that must come; one that must not come is waited for a shorter time."""

REFUSED = "refused"
SILENCE = "no answer"


@dataclass(frozen=True, slots=True)
class Answer:
    """Which pod answered, and the address it says it was called from; or else what was met instead."""

    pod: str = ""
    caller: str = ""
    error: str = ""


def ask(netns: str, address: str, port: int, *, source: str = "", timeout: float = PATIENCE) -> Answer:
    """One request over a connection of its own, from a namespace, and from one of its addresses."""
    status, body = get(netns, address, port, CALLER, source=source, timeout=timeout)
    if status != http.client.OK:
        return Answer(error=body if not status else f"HTTP {status}")
    pod, _, caller = body.strip().partition(" ")
    seen: IPv4Address | IPv6Address = ip_address(caller.strip("[]"))
    if isinstance(seen, IPv6Address) and seen.ipv4_mapped:
        seen = seen.ipv4_mapped
    return Answer(pod, str(seen))


def get(
    netns: str, address: str, port: int, path: str, *, source: str = "", timeout: float = PATIENCE
) -> tuple[int, str]:
    """Status and body; or 0 and the error."""
    with network.inside(netns):
        connection = http.client.HTTPConnection(
            address, port, timeout=timeout, source_address=(source, 0) if source else None
        )
        try:
            connection.request("GET", path, headers={"Connection": "close"})
            response = connection.getresponse()
            return response.status, response.read(4000).decode()
        except ConnectionRefusedError:
            return 0, REFUSED
        except TimeoutError:
            return 0, SILENCE
        except (OSError, http.client.HTTPException) as error:
            return 0, str(error) or type(error).__name__
        finally:
            connection.close()


def clients(cluster: Cluster, count: int) -> list[str]:
    """That many addresses on the underlay that are no host's, nor CLIENT."""
    made = [f"{UNDERLAY_PREFIX}.{201 + number}" for number in range(count)]
    for address in made:
        run(["ip", "-n", cluster.topology.underlay, "address", "replace", f"{address}/24", "dev", "br0"], timeout=10)
    return made


def route(cluster: Cluster, address: str, host: Host) -> None:
    """Have the underlay send an address to a host, as a router in front of the cluster does."""
    argv = ["ip", "-n", cluster.topology.underlay, "route", "replace", f"{address}/32", "via", host.address]
    run(argv, timeout=10)


def service(cluster: Cluster, name: str, *, annotations: Mapping[str, str] | None = None, **spec: Any) -> Service:
    """Apply a service of the web pods at port 80, unless told otherwise; return it as it is stored."""
    document = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": {"name": name, "annotations": dict(annotations or {})},
        "spec": {"selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": "http"}], **spec},
    }
    _apply(cluster, document)
    return msgspec.json.decode(cluster.podlane("get", "service", name, "-o", "json"), type=Service)


def forget_services(cluster: Cluster) -> None:
    """Delete all but `web`: every change of a pod is one of each service."""
    names = cluster.podlane("get", "services", "-o", "name").split()
    cluster.podlane("delete", *(name for name in names if name != "service/web"))


def node_port(made: Service) -> int:
    return made.spec.ports[0].node_port


def run_pods(cluster: Cluster, count: int) -> None:
    """So many web pods, ready, and reached from every node by the service `web`; no others.

    They may take long to answer probes and to end, for this machine may be busy.
    """
    controller = yaml.safe_load((EXAMPLES / "web-controller.yaml").read_text())
    pod = controller["spec"]["template"]["spec"]
    pod["terminationGracePeriodSeconds"] = 30
    pod["containers"][0]["readinessProbe"]["timeoutSeconds"] = 10
    controller["spec"]["replicas"] = count
    _apply(cluster, controller)
    cluster.podlane("apply", "-f", str(EXAMPLES / "web-service.yaml"))
    settle(cluster, count)
    cluster.wait("every node reaches them all", lambda: cluster.reaches_all(count), 60)


def settle(cluster: Cluster, count: int) -> None:
    """Wait for so many ready pods, and none that ends."""

    def settled() -> bool:
        listed = msgspec.json.decode(cluster.podlane("get", "pods", "-l", "app=web", "-o", "json"))["items"]
        pods = msgspec.convert(listed, list[Pod])
        return len(pods) == count and all(is_pod_ready(p) and p.metadata.deletion_timestamp is None for p in pods)

    cluster.wait(f"{count} web pods ready and no others", settled, 90)


def homes(cluster: Cluster) -> dict[str, Sequence[str]]:
    """The ready pods of each node, also of those without."""
    ready = cluster.ready()
    return {h.name: [p.metadata.name for p in ready if p.spec.node_name == h.name] for h in cluster.nodes}


def _apply(cluster: Cluster, document: Mapping[str, Any]) -> None:
    file = cluster.topology.run_dir / "applied.yaml"
    file.write_text(yaml.safe_dump(document))
    cluster.podlane("apply", "-f", str(file))
