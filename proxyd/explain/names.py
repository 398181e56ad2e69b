"""Services' names for what the kernel knows by numbers only.

Owns: `namespace/name:port` of a frontend, `namespace/name` of an address, and which pods' node an endpoint is on.
Pure, over the index of what is wanted.
"""

from __future__ import annotations

from podlane.api.types import Service, ServicePort
from proxyd.desired import Index
from proxyd.tables import Family, Frontend, Key, MapSpec, Target, pack_address, show_address, unpack_frontend


class Names:
    """`index` None: nothing is known of the store, and every name is ""."""

    def __init__(self, index: Index | None) -> None:
        self._index = index
        self._owners: dict[bytes, str] = {}
        self._nodes: dict[str, str] = {}
        for name, service in index.services.items() if index else ():
            for each in service.spec.cluster_ips or (service.spec.cluster_ip,):
                if each not in {"", "None"}:
                    self._owners[pack_address(each)] = name
            for slice_ in index.slices(name) if index else ():
                for endpoint in slice_.endpoints:
                    self._nodes.update(dict.fromkeys(endpoint.addresses, endpoint.node_name or ""))

    @property
    def known(self) -> bool:
        """Whether the store could be read."""
        return self._index is not None

    def frontend(self, frontend: Key) -> str:
        """`default/web:http`, or without a port's name `default/web`; "" for a frontend no service has."""
        owner = self._index.owner(frontend) if self._index else None
        if self._index is None or owner is None:
            return ""
        port = port_of(self._index.services[owner], unpack_frontend(frontend))
        return f"{owner}:{port.name}" if port is not None and port.name else owner

    def address(self, address: bytes) -> str:
        """The service that has a cluster IP."""
        return self._owners.get(address, "")

    def node(self, address: str) -> str:
        """The node an endpoint is on, as its slice says."""
        return self._nodes.get(address, "")

    def target(self, target: Target) -> str:
        node = self.node(target.address)
        return f"{target} on {node}" if node else str(target)

    def element(self, spec: MapSpec, family: Family, key: Key) -> str:
        """Whom an element is about: a frontend's service, a cluster IP's, or the node of an endpoint."""
        if "proto" in spec.key:
            return self.frontend(key[: family.width + 8])
        if spec.key[0] != "address":
            return ""
        node = self.node(show_address(key[: family.width]))
        return self.address(key[: family.width]) or (f"on {node}" if node else "")


def port_of(service: Service, frontend: Frontend) -> ServicePort | None:
    """Which of the service's ports a frontend of its is for."""
    own = {*(service.spec.cluster_ips or (service.spec.cluster_ip,)), *service.spec.external_ips}
    own |= {each.ip for each in service.status.load_balancer.ingress}
    for port in service.spec.ports:
        number = port.port if frontend.address in own else port.node_port
        if number == frontend.port and port.protocol == frontend.protocol:
            return port
    return None
