"""flannel's network config and subnet leases, as flannel reads and writes them.

Owns: the config at `<prefix>/config` with flannel's defaults and checks, the
lease keys `<prefix>/subnets/10.5.34.0-24`, and the lease values' compact JSON
in flannel's field order, so that a real flanneld on the same etcd joins the
same overlay. Reading is tolerant as Go's decoder is (keys in any case, unknown
keys ignored); writing is exact. Sources: flannel pkg/subnet/config.go,
pkg/subnet/subnet.go, pkg/lease/lease.go, pkg/backend/vxlan.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, TypeVar

from podlane.errors import FieldError, Invalid

DEFAULT_PREFIX = "/coreos.com/network"
LEASE_TTL = 24 * 3600
"""Seconds a subnet lease lives without renewal."""

VXLAN_OVERHEAD = 50
"""Bytes VXLAN over IPv4 adds to a packet: 20 IP + 8 UDP + 8 VXLAN + 14 Ethernet (RFC 7348)."""

MAX_VNI = (1 << 24) - 1

_A = TypeVar("_A", IPv4Address, IPv6Address)


@dataclass(frozen=True, slots=True)
class Backend:
    """How packets travel between hosts. `mtu` is the underlay's, 0 = take the interface's."""

    type: str = "vxlan"
    vni: int = 1
    port: int = 8472
    mtu: int = 0
    direct_routing: bool = False
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

    def allows(self, subnet: IPv4Network) -> bool:
        """Whether a node may lease this IPv4 subnet under this config."""
        if self.network is None or self.subnet_min is None or self.subnet_max is None:
            return False
        return subnet.prefixlen == self.subnet_len and self.subnet_min <= subnet.network_address <= self.subnet_max


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

    def boolean(self, name: str, default: bool) -> bool:
        value = self.raw(name)
        if value is None:
            return default
        if not isinstance(value, bool):
            self.error(name, f"expected true or false, got {json.dumps(value)}")
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
            if not isinstance(value, str) or "/" not in value:
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
            if not isinstance(value, str):
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
        raw = json.loads(data)
    except ValueError as e:
        raise Invalid(where, [FieldError("", f"not JSON: {e}")]) from None
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
            direct_routing=False if isinstance(direct, str) else inner.boolean("DirectRouting", False),
            gbp=inner.boolean("GBP", False),
            learning=inner.boolean("Learning", False),
        )
        if isinstance(direct, str):
            inner.error("DirectRouting", f"expected true or false, got {json.dumps(direct)}")
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


# ---- subnet leases -------------------------------------------------------------------------------

_KEY = re.compile(r"(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?")
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


def config_key(prefix: str) -> str:
    return f"{prefix.rstrip('/')}/config"


def subnets_prefix(prefix: str) -> str:
    return f"{prefix.rstrip('/')}/subnets/"


def subnet_key(subnet: IPv4Network, subnet6: IPv6Network | None = None) -> str:
    """The last part of a lease's key: `10.5.34.0-24`, dual-stack `10.5.34.0-24&fd00:12:13::-64`."""
    key = f"{subnet.network_address}-{subnet.prefixlen}"
    return key if subnet6 is None else f"{key}&{subnet6.network_address}-{subnet6.prefixlen}"


def parse_subnet_key(name: str) -> tuple[IPv4Network, IPv6Network | None]:
    """The inverse of `subnet_key`. Raises ValueError, also when host bits are set."""
    match = _KEY.fullmatch(name)
    if match is None:
        raise ValueError(f'lease key "{name}": expected the form 10.5.34.0-24')
    try:
        subnet = IPv4Network((match[1], int(match[2])))
        subnet6 = IPv6Network((match[3], int(match[4]))) if match[3] else None
    except ValueError as e:
        raise ValueError(f'lease key "{name}": {e}') from None
    return subnet, subnet6


def parse_mac(text: str) -> str:
    """A unicast MAC address in lower case. Raises ValueError."""
    if not _MAC.fullmatch(text):
        raise ValueError(f'expected a MAC address, got "{text}"')
    mac = text.lower()
    if mac == "00:00:00:00:00:00" or int(mac[:2], 16) & 1:
        raise ValueError(f"expected a unicast MAC address, got {mac}")
    return mac


@dataclass(frozen=True, slots=True)
class LeaseValue:
    """What a lease says about its node. `backend_data` is None for backends without any (host-gw)."""

    public_ip: IPv4Address
    public_ipv6: IPv6Address | None = None
    backend_type: str = "vxlan"
    backend_data: Mapping[str, Any] | None = None
    backend_v6_data: Mapping[str, Any] | None = None

    @classmethod
    def vxlan(cls, public_ip: IPv4Address, vni: int, mac: str) -> LeaseValue:
        return cls(public_ip, backend_data={"VNI": vni, "VtepMAC": mac})

    @property
    def vtep_mac(self) -> str:
        """The VTEP's MAC address, lower case. Raises ValueError if this is not a usable vxlan lease."""
        if self.backend_type != "vxlan":
            raise ValueError(f'backend type "{self.backend_type}" is not vxlan')
        folded = {key.lower(): value for key, value in (self.backend_data or {}).items()}
        mac = folded.get("vtepmac")
        if not isinstance(mac, str):
            raise ValueError("BackendData.VtepMAC: required")
        return parse_mac(mac)

    def encode(self) -> bytes:
        """The exact JSON flannel writes: its field order, compact, empty backend parts left out."""
        out: dict[str, Any] = {
            "PublicIP": str(self.public_ip),
            "PublicIPv6": None if self.public_ipv6 is None else str(self.public_ipv6),
        }
        if self.backend_type:
            out["BackendType"] = self.backend_type
        if self.backend_data is not None:
            out["BackendData"] = dict(self.backend_data)
        if self.backend_v6_data is not None:
            out["BackendV6Data"] = dict(self.backend_v6_data)
        return json.dumps(out, separators=(",", ":")).encode()

    @classmethod
    def decode(cls, data: bytes | str) -> LeaseValue:
        """Raises ValueError for anything that is not a lease's value."""
        raw = json.loads(data)
        if not isinstance(raw, dict):
            raise ValueError("lease value: expected a JSON object")
        folded = {key.lower(): value for key, value in raw.items()}
        public, public6 = folded.get("publicip"), folded.get("publicipv6")
        if not isinstance(public, str):
            raise ValueError("lease value: PublicIP: required")
        kind = folded.get("backendtype")
        kind = "" if kind is None else kind
        parts = [folded.get("backenddata"), folded.get("backendv6data")]
        if not isinstance(kind, str) or not all(part is None or isinstance(part, dict) for part in parts):
            raise ValueError("lease value: BackendType must be a string and BackendData an object")
        return cls(
            public_ip=IPv4Address(public),
            public_ipv6=IPv6Address(public6) if isinstance(public6, str) and public6 else None,
            backend_type=kind,
            backend_data=parts[0],
            backend_v6_data=parts[1],
        )


@dataclass(frozen=True, slots=True)
class SubnetFile:
    """The file that tells Docker and others which subnet this host has (`/run/flannel/subnet.env`)."""

    network: IPv4Network
    subnet: IPv4Network
    mtu: int
    ip_masq: bool

    @property
    def gateway(self) -> IPv4Address:
        """The subnet's first address: the bridge's, on the host."""
        return self.subnet.network_address + 1

    def render(self) -> str:
        return (
            f"FLANNEL_NETWORK={self.network}\n"
            f"FLANNEL_SUBNET={self.gateway}/{self.subnet.prefixlen}\n"
            f"FLANNEL_MTU={self.mtu}\n"
            f"FLANNEL_IPMASQ={'true' if self.ip_masq else 'false'}\n"
        )

    @classmethod
    def parse(cls, text: str) -> SubnetFile:
        """Raises ValueError if a value is missing or malformed. Unknown lines are ignored."""
        values = dict(line.strip().split("=", 1) for line in text.splitlines() if "=" in line)
        try:
            return cls(
                network=IPv4Network(values["FLANNEL_NETWORK"]),
                subnet=IPv4Network(values["FLANNEL_SUBNET"], strict=False),
                mtu=int(values["FLANNEL_MTU"]),
                ip_masq=values.get("FLANNEL_IPMASQ", "false") == "true",
            )
        except KeyError as e:
            raise ValueError(f"subnet file: {e.args[0]} is missing") from None
        except ValueError as e:
            raise ValueError(f"subnet file: {e}") from None
