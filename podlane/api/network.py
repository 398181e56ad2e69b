"""flannel's network config, as flannel reads it.

Owns: the config at `<prefix>/config` with flannel's defaults and checks.
Reading is tolerant as Go's decoder is (keys in any case, unknown keys
ignored). Sources: flannel pkg/subnet/config.go, Documentation/configuration.md.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Literal, TypeVar

from podlane.api.subnets import Network, Subnets, load_json
from podlane.errors import FieldError, Invalid

VXLAN_OVERHEAD = 50
"""Bytes VXLAN over IPv4 adds to a packet: 20 IP + 8 UDP + 8 VXLAN + 14 Ethernet (RFC 7348)."""

VXLAN6_OVERHEAD = 70
"""The same over IPv6, whose header has 40 bytes."""

MAX_VNI = (1 << 24) - 1

# neither a netmask nor a zone, which ipaddress would take and Go does not
_CIDR = re.compile(r"[0-9A-Fa-f.:]+/[0-9]+")

_A = TypeVar("_A", IPv4Address, IPv6Address)


@dataclass(frozen=True, slots=True)
class Backend:
    """How packets travel between hosts. `mtu` is the underlay's, 0 = take the interface's.

    `direct_routing` "auto" is ours: a direct route only where a probe shows that pod packets pass.
    """

    type: str = "vxlan"
    vni: int = 1
    port: int = 8472
    mtu: int = 0
    direct_routing: bool | Literal["auto"] = False
    gbp: bool = False
    learning: bool = False


@dataclass(frozen=True, slots=True)
class NetworkConfig:
    """A checked network config: every default is filled in.

    `network` is None exactly when `enable_ipv4` is false, likewise for IPv6.
    """

    network: IPv4Network | None = None
    subnet_len: int = 0
    subnet_min: IPv4Address | None = None
    subnet_max: IPv4Address | None = None
    ipv6_network: IPv6Network | None = None
    ipv6_subnet_len: int = 0
    ipv6_subnet_min: IPv6Address | None = None
    ipv6_subnet_max: IPv6Address | None = None
    enable_ipv4: bool = True
    enable_ipv6: bool = False
    enable_nftables: bool = False
    backend: Backend = field(default_factory=Backend)

    @property
    def networks(self) -> tuple[Network, ...]:
        """The pod networks: one or both families, IPv4 first."""
        return tuple(n for n in (self.network, self.ipv6_network) if n is not None)

    def allows(self, subnets: Subnets) -> bool:
        """Whether a node may lease these under this config: each enabled family's, in its range, and no other."""
        return _allows(subnets.v4, self.subnet_len, self.subnet_min, self.subnet_max) and _allows(
            subnets.v6, self.ipv6_subnet_len, self.ipv6_subnet_min, self.ipv6_subnet_max
        )


def _allows(subnet: Any, length: int, low: Any, high: Any) -> bool:
    if subnet is None or low is None:
        return subnet is None and low is None
    return bool(subnet.prefixlen == length and low <= subnet.network_address <= high)


class _Reader:
    """Takes typed values out of a JSON object whose keys may be in any case; collects what is wrong."""

    def __init__(self, data: Mapping[str, Any], path: str, errors: list[FieldError]) -> None:
        self._data = {key.lower(): value for key, value in data.items()}
        self._path = path
        self.errors = errors

    def error(self, name: str, message: str) -> None:
        self.errors.append(FieldError(f"{self._path}{name}", message))

    def raw(self, name: str) -> Any:
        return self._data.get(name.lower())

    def boolean(self, name: str, default: bool, expected: str = "true or false") -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.error(name, f"expected {expected}, got {json.dumps(value)}")
            return default
        return value

    def integer(self, name: str, default: int, low: int, high: int) -> int:
        value = self.raw(name)
        if value is None:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not low <= value <= high:
            self.error(name, f"expected an integer from {low} to {high}, got {json.dumps(value)}")
            return default
        return value

    def text(self, name: str, default: str) -> str:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, str):
            self.error(name, f"expected a string, got {json.dumps(value)}")
            return default
        return value

    def network(self, name: str, kind: type[IPv4Network] | type[IPv6Network]) -> Any:
        value = self.raw(name)
        if value in (None, ""):
            return None
        try:
            if not isinstance(value, str) or not _CIDR.fullmatch(value):
                raise ValueError(value)
            return kind(value, strict=False)  # as Go's ParseCIDR, host bits are masked off
        except ValueError:
            example = "10.5.0.0/16" if kind is IPv4Network else "fd00:10:5::/56"
            self.error(name, f"expected a network such as {example}, got {json.dumps(value)}")
            return None

    def address(self, name: str, kind: type[_A]) -> _A | None:
        value = self.raw(name)
        if value in (None, ""):
            return None
        try:
            if not isinstance(value, str) or "%" in value:
                raise ValueError(value)
            return kind(value)
        except ValueError:
            family = "IPv4" if kind is IPv4Address else "IPv6"
            self.error(name, f"expected an {family} address, got {json.dumps(value)}")
            return None


def _family(
    read: _Reader, prefix: str, address: type[_A], network: type[IPv4Network] | type[IPv6Network]
) -> tuple[Any, int, Any, Any]:
    """Read and default one family's Network, SubnetLen, SubnetMin and SubnetMax."""
    bits = 32 if network is IPv4Network else 128
    usual = 24 if bits == 32 else 64
    before = len(read.errors)
    name = f"{prefix}Network"
    net = read.network(name, network)
    length = read.integer(f"{prefix}SubnetLen", 0, 0, bits)
    low = read.address(f"{prefix}SubnetMin", address)
    high = read.address(f"{prefix}SubnetMax", address)
    if net is None:
        if len(read.errors) == before:
            read.error(name, "required")
        return None, 0, None, None
    if length == 0:
        if net.prefixlen > bits - 4:
            read.error(name, f"{net} is too small: the longest useful prefix is /{bits - 4}")
            return net, 0, None, None
        length = usual if net.prefixlen <= usual - 2 else net.prefixlen + 2
    elif length > bits - 2:
        read.error(f"{prefix}SubnetLen", f"expected at most {bits - 2}, got {length}")
        return net, length, None, None
    elif length < net.prefixlen + 2:
        # the first subnet is not used, so fewer than four leave a single usable one
        read.error(f"{prefix}SubnetLen", f"{net} must hold at least four subnets, got /{length}")
        return net, length, None, None
    size = 1 << (bits - length)
    first, last = int(net.network_address), int(net.broadcast_address)
    low = address(first + size) if low is None else low
    high = address(last + 1 - size) if high is None else high
    for which, value in (("SubnetMin", low), ("SubnetMax", high)):
        if value not in net:
            read.error(prefix + which, f"{value} is not in {net}")
        elif int(value) % size:
            read.error(prefix + which, f"{value} is not the first address of a /{length}")
    if low > high:
        read.error(f"{prefix}SubnetMin", f"{low} is after SubnetMax {high}")
    return net, length, low, high


def parse_config(data: bytes | str, where: str = "network config") -> NetworkConfig:
    """Read a network config, fill in flannel's defaults and check it.

    Raises Invalid with everything that is wrong.
    """
    try:
        raw = load_json(data)
    except ValueError as e:
        raise Invalid(where, [FieldError("", str(e))]) from None
    if not isinstance(raw, dict):
        raise Invalid(where, [FieldError("", "expected a JSON object")])
    errors: list[FieldError] = []
    read = _Reader(raw, "", errors)
    v4 = read.boolean("EnableIPv4", True)
    v6 = read.boolean("EnableIPv6", False)
    nft = read.boolean("EnableNFTables", False)
    if not v4 and not v6:
        read.error("EnableIPv4", "at least one of EnableIPv4 and EnableIPv6 must be true")
    four = _family(read, "", IPv4Address, IPv4Network) if v4 else (None, 0, None, None)
    six = _family(read, "IPv6", IPv6Address, IPv6Network) if v6 else (None, 0, None, None)
    backend_raw = read.raw("Backend")
    backend = Backend()
    if backend_raw is not None and not isinstance(backend_raw, dict):
        read.error("Backend", "expected an object")
    elif backend_raw:
        inner = _Reader(backend_raw, "Backend.", errors)
        direct = inner.raw("DirectRouting")
        backend = Backend(
            type=inner.text("Type", "vxlan").lower(),
            vni=inner.integer("VNI", 1, 0, MAX_VNI),
            port=inner.integer("Port", 8472, 0, 65535) or 8472,
            mtu=inner.integer("MTU", 0, 0, 65535),
            direct_routing="auto"
            if direct == "auto"
            else inner.boolean("DirectRouting", False, 'true, false or "auto"'),
            gbp=inner.boolean("GBP", False),
            learning=inner.boolean("Learning", False),
        )
    if errors:
        raise Invalid(where, errors)
    return NetworkConfig(
        network=four[0],
        subnet_len=four[1],
        subnet_min=four[2],
        subnet_max=four[3],
        ipv6_network=six[0],
        ipv6_subnet_len=six[1],
        ipv6_subnet_min=six[2],
        ipv6_subnet_max=six[3],
        enable_ipv4=v4,
        enable_ipv6=v6,
        enable_nftables=nft,
        backend=backend,
    )
