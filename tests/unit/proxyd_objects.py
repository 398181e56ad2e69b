"""Services and slices in one line each, and a source that a test fills by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from podlane.api.types import (
    SERVICE_NAME_LABEL,
    Endpoint,
    EndpointConditions,
    EndpointPort,
    EndpointSlice,
    ObjectMeta,
    Service,
    ServicePort,
    ServiceSpec,
)
from podlane.runtime.runner import NotReady
from proxyd.source import View

POD_NETWORK = "10.5.0.0/16"
SERVICE_RANGE = "10.96.0.0/16"


def service(name: str, ip: str, *ports: str, labels: Mapping[str, str] | None = None) -> Service:
    """`ports`: "http:80/TCP", or "80" for a nameless TCP port."""
    return Service(
        metadata=ObjectMeta(name=name, namespace="default", labels=dict(labels or {})),
        spec=ServiceSpec(cluster_ip=ip, ports=tuple(_service_port(port) for port in ports or ("80",))),
    )


def _split(text: str) -> tuple[str, int, str]:
    name, _, rest = text.rpartition(":")
    port, _, protocol = rest.partition("/")
    return name, int(port), protocol or "TCP"


def _service_port(text: str) -> ServicePort:
    name, port, protocol = _split(text)
    return ServicePort(name=name, port=port, protocol=protocol)  # type: ignore[arg-type]


def slice_of(
    service_name: str,
    addresses: Sequence[str],
    *ports: str,
    suffix: str = "1",
    not_ready: Sequence[str] = (),
    nodes: Mapping[str, str] | None = None,
) -> EndpointSlice:
    """Ready endpoints at the addresses, and others that are not; `ports` as in `service` (default 8080)."""
    return EndpointSlice(
        metadata=ObjectMeta(
            name=f"{service_name}-{suffix}", namespace="default", labels={SERVICE_NAME_LABEL: service_name}
        ),
        endpoints=tuple(
            Endpoint(
                addresses=(address,),
                conditions=EndpointConditions(ready=address not in not_ready, serving=True),
                node_name=(nodes or {}).get(address, "node1"),
            )
            for address in (*addresses, *not_ready)
        ),
        ports=tuple(
            EndpointPort(name=name, port=port, protocol=protocol)  # type: ignore[arg-type]
            for name, port, protocol in map(_split, ports or ("8080",))
        ),
    )


class ListSource:
    """The mirrors' stand-in: put objects in, and `take` gives what a StoreSource would."""

    def __init__(self) -> None:
        self.services: dict[str, Service] = {}
        self.slices: dict[str, EndpointSlice] = {}
        self.ready = True
        self.pod_networks: tuple[str, ...] = (POD_NETWORK,)
        self.service_ranges: tuple[str, ...] = (SERVICE_RANGE,)
        self._changed: tuple[set[str], set[str]] = (set(), set())

    def put(self, *objects: Service | EndpointSlice) -> None:
        for each in objects:
            name = f"{each.metadata.namespace}/{each.metadata.name}"
            if isinstance(each, Service):
                self.services[name] = each
                self._changed[0].add(name)
            else:
                self.slices[name] = each
                self._changed[1].add(name)

    def drop(self, *objects: Service | EndpointSlice) -> None:
        for each in objects:
            name = f"{each.metadata.namespace}/{each.metadata.name}"
            if isinstance(each, Service):
                del self.services[name]
                self._changed[0].add(name)
            else:
                del self.slices[name]
                self._changed[1].add(name)

    def take(self, *, complete: bool) -> View:
        if not self.ready:
            raise NotReady("read store: no complete list yet")
        changed, self._changed = self._changed, (set(), set())
        networks = (self.pod_networks, self.service_ranges)
        if complete:
            return View(True, dict(self.services), dict(self.slices), *networks)
        return View(
            False,
            {name: self.services.get(name) for name in changed[0]},
            {name: self.slices.get(name) for name in changed[1]},
            *networks,
        )
