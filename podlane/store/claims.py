"""The addresses and node ports of a service as keys that say who has them.

Owns: which keys below /registry/ranges a service holds, and how the transaction
that writes the service takes and returns them. Invariant: a key exists exactly
while a service in the store has the address or port, because both are written
in one transaction; so two services cannot have one, and none is left behind.
"""

from __future__ import annotations

from podlane.api import services
from podlane.api.codec import encode
from podlane.api.meta import reference_to
from podlane.api.types import Object, Service
from podlane.store import keys
from podlane.store.interface import Compare, Delete, Put


def claims_of(obj: Object | None) -> dict[str, str]:
    """Key to field: `spec.clusterIP`, `spec.ports[0].nodePort`; empty for what is no service."""
    if not isinstance(obj, Service):
        return {}
    found: dict[str, str] = {}
    for index, text in enumerate(services.cluster_ips(obj.spec)):
        # one address has several spellings in IPv6 and only one key
        found[keys.service_ip_key(str(services.address_of(text) or text))] = (
            f"spec.clusterIPs[{index}]" if index else "spec.clusterIP"
        )
    for field, port in services.used_node_ports(obj.spec):
        found.setdefault(keys.service_node_port_key(port), field)
    return found


def taking(old: Object | None, new: Object) -> tuple[list[Compare], list[Put | Delete]]:
    """What the transaction compares and does beside writing `new` over `old`."""
    before, after = claims_of(old), claims_of(new)
    if before.keys() == after.keys():
        return [], []
    taken = [key for key in after if key not in before]
    owner = encode(reference_to(new))
    ops: list[Put | Delete] = [Put(key, owner) for key in taken]
    ops += [Delete(key) for key in before if key not in after]
    return [Compare.absent(key) for key in taken], ops


def returning(old: Object) -> list[Delete]:
    """What the transaction that removes `old` does beside it."""
    return [Delete(key) for key in claims_of(old)]
