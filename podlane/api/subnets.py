"""flannel's subnet leases and subnet file, as flannel reads and writes them.

Owns: the lease keys `<prefix>/subnets/10.5.34.0-24`, the lease values' compact
JSON in flannel's field order, and subnet.env, so that a real flanneld on the
same etcd joins the same overlay. Reading is tolerant as Go's decoder is (keys
in any case, unknown keys ignored); writing is exact. Sources: flannel
pkg/subnet/subnet.go, pkg/lease/lease.go, pkg/backend/vxlan.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network
from typing import Any, Literal

DEFAULT_PREFIX = "/coreos.com/network"
LEASE_TTL = 24 * 3600
"""Seconds a subnet lease lives without renewal."""

Address = IPv4Address | IPv6Address
Network = IPv4Network | IPv6Network

_KEY = re.compile(r"(\d+\.\d+\.\d+\.\d+)-(\d+)(?:&([a-f\d:]+)-(\d+))?", re.ASCII)
_NO_IPV4 = "0.0.0.0-0"
_MAC = re.compile(r"[0-9a-fA-F]{2}(:[0-9a-fA-F]{2}){5}")


def config_key(prefix: str) -> str:
    return f"{prefix.rstrip('/')}/config"


def subnets_prefix(prefix: str) -> str:
    return f"{prefix.rstrip('/')}/subnets/"


def netd_prefix(prefix: str) -> str:
    """Where netd keeps what flannel has no room for: `/podlane/netd/coreos.com/network/`."""
    inner = prefix.strip("/")
    return f"/podlane/netd/{inner}/" if inner else "/podlane/netd/"


def load_json(data: bytes | str) -> Any:
    """What anybody may have written. Raises ValueError, also for what is nested too deep to be read."""
    try:
        return json.loads(data)
    except RecursionError:
        raise ValueError("not JSON: nested too deep") from None
    except ValueError as error:
        raise ValueError(f"not JSON: {error}") from None


@dataclass(frozen=True, slots=True)
class Subnets:
    """What one lease is for: an IPv4 subnet, an IPv6 one, or one of each. At least one is given."""

    v4: IPv4Network | None = None
    v6: IPv6Network | None = None

    def __iter__(self) -> Iterator[Network]:
        """Those there are, IPv4 first."""
        return iter([subnet for subnet in (self.v4, self.v6) if subnet is not None])

    def __str__(self) -> str:
        return ",".join(map(str, self))

    @property
    def key(self) -> str:
        """The last part of the lease's key: `10.5.34.0-24`, dual-stack `10.5.34.0-24&fd00:12:13::-64`.

        For IPv6 alone flannel writes its empty IPv4 network first: `0.0.0.0-0&fd00:12:13::-64`.
        """
        v4 = f"{self.v4.network_address}-{self.v4.prefixlen}" if self.v4 is not None else _NO_IPV4
        return v4 if self.v6 is None else f"{v4}&{self.v6.network_address}-{self.v6.prefixlen}"

    def overlaps(self, other: Subnets) -> bool:
        return (self.v4 is not None and other.v4 is not None and self.v4.overlaps(other.v4)) or (
            self.v6 is not None and other.v6 is not None and self.v6.overlaps(other.v6)
        )

    @classmethod
    def parse_key(cls, name: str) -> Subnets:
        """The inverse of `key`. Raises ValueError, also when host bits are set."""
        match = _KEY.fullmatch(name)
        if match is None:
            raise ValueError(f'lease key "{name}": expected the form 10.5.34.0-24 or 10.5.34.0-24&fd00:12:13::-64')
        try:
            v6 = IPv6Network((match[3], int(match[4]))) if match[3] else None
            no_v4 = v6 is not None and name.startswith(f"{_NO_IPV4}&")
            v4 = None if no_v4 else IPv4Network((match[1], int(match[2])))
        except ValueError as e:
            raise ValueError(f'lease key "{name}": {e}') from None
        found = cls(v4, v6)
        if any(subnet.prefixlen == 0 for subnet in found):
            raise ValueError(f'lease key "{name}": a prefix length of 0 is no subnet')
        return found


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
    """What a lease says about its node.

    A node without an IPv4 address has `public_ip` None (flannel writes 0.0.0.0).
    `backend_data` is None for backends without any (host-gw), and for a network without IPv4.
    """

    public_ip: IPv4Address | None
    public_ipv6: IPv6Address | None = None
    backend_type: str = "vxlan"
    backend_data: Mapping[str, Any] | None = None
    backend_v6_data: Mapping[str, Any] | None = None

    @classmethod
    def vxlan(
        cls,
        public_ip: IPv4Address | None,
        vni: int,
        mac: str = "",
        *,
        public_ipv6: IPv6Address | None = None,
        mac6: str = "",
    ) -> LeaseValue:
        """`mac` is the VTEP's that carries the IPv4 pod network, `mac6` the IPv6 one; empty without that family."""
        return cls(
            public_ip,
            public_ipv6,
            backend_data={"VNI": vni, "VtepMAC": mac} if mac else None,
            backend_v6_data={"VNI": vni, "VtepMAC": mac6} if mac6 else None,
        )

    @property
    def addresses(self) -> tuple[Address, ...]:
        """The public addresses there are, IPv4 first."""
        return tuple(a for a in (self.public_ip, self.public_ipv6) if a is not None)

    def vtep_mac(self, family: Literal[4, 6] = 4) -> str:
        """The MAC address, in lower case, of the VTEP that carries this family's pod network.

        Raises ValueError if this is not a usable vxlan lease for it.
        """
        if self.backend_type != "vxlan":
            raise ValueError(f'backend type "{self.backend_type}" is not vxlan')
        name, data = ("BackendData", self.backend_data) if family == 4 else ("BackendV6Data", self.backend_v6_data)
        folded = {key.lower(): value for key, value in (data or {}).items()}
        mac = folded.get("vtepmac")
        if not isinstance(mac, str):
            raise ValueError(f"{name}.VtepMAC: required")
        return parse_mac(mac)

    def encode(self) -> bytes:
        """The exact JSON flannel writes: its field order, compact, empty backend parts left out."""
        out: dict[str, Any] = {
            "PublicIP": "0.0.0.0" if self.public_ip is None else str(self.public_ip),
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
        raw = load_json(data)
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
        if public6 is not None and (not isinstance(public6, str) or "%" in public6):
            raise ValueError("lease value: PublicIPv6: expected an IPv6 address or null")
        return cls(
            public_ip=None if public == "0.0.0.0" else IPv4Address(public),
            public_ipv6=IPv6Address(public6) if public6 else None,
            backend_type=kind,
            backend_data=parts[0],
            backend_v6_data=parts[1],
        )


@dataclass(frozen=True, slots=True)
class SubnetFile:
    """The file that tells Docker and others which subnet this host has (`/run/flannel/subnet.env`).

    `networks` and `subnets` have one family or both, IPv4 first, each as many as the other.
    """

    networks: tuple[Network, ...]
    subnets: Subnets
    mtu: int
    ip_masq: bool

    @property
    def gateway(self) -> IPv4Address:
        """The IPv4 subnet's first address: the bridge's, on the host. Raises ValueError without one."""
        if self.subnets.v4 is None:
            raise ValueError("subnet file: FLANNEL_SUBNET is missing")
        return self.subnets.v4.network_address + 1

    def render(self) -> str:
        lines: list[str] = []
        for network, subnet in zip(self.networks, self.subnets, strict=True):
            family = "" if network.version == 4 else "IPV6_"
            lines += [
                f"FLANNEL_{family}NETWORK={network}",
                f"FLANNEL_{family}SUBNET={subnet.network_address + 1}/{subnet.prefixlen}",
            ]
        lines += [f"FLANNEL_MTU={self.mtu}", f"FLANNEL_IPMASQ={'true' if self.ip_masq else 'false'}"]
        return "\n".join(lines) + "\n"

    @classmethod
    def parse(cls, text: str) -> SubnetFile:
        """Raises ValueError if a value is missing or malformed. Unknown lines are ignored."""
        values = dict(line.strip().split("=", 1) for line in text.splitlines() if "=" in line)
        try:
            v4 = IPv4Network(values["FLANNEL_SUBNET"], strict=False) if "FLANNEL_SUBNET" in values else None
            v6 = IPv6Network(values["FLANNEL_IPV6_SUBNET"], strict=False) if "FLANNEL_IPV6_SUBNET" in values else None
            if v4 is None and v6 is None:
                raise KeyError("FLANNEL_SUBNET")
            networks: list[Network] = []
            if v4 is not None:
                networks.append(IPv4Network(values["FLANNEL_NETWORK"]))
            if v6 is not None:
                networks.append(IPv6Network(values["FLANNEL_IPV6_NETWORK"]))
            return cls(
                networks=tuple(networks),
                subnets=Subnets(v4, v6),
                mtu=int(values["FLANNEL_MTU"]),
                ip_masq=values.get("FLANNEL_IPMASQ", "false") == "true",
            )
        except KeyError as e:
            raise ValueError(f"subnet file: {e.args[0]} is missing") from None
        except ValueError as e:
            raise ValueError(f"subnet file: {e}") from None
