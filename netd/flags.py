"""The options of `netd run`: flanneld's long flags with their meaning, and netd's own.

Owns: names, environment variables, defaults, and what a value must look like.
Invariants: the daemon gets one frozen RunOptions that needs no further checks;
a mistake ends the start with exit code 2, the flag, and what was expected. A
flag counts before NETD_X, that before FLANNELD_X, that before the default; an
empty value is none, as in Go. Source: flannel's main.go and its
Documentation/configuration.md.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import wraps
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path
from typing import Any

import click

from netd.goflags import IGNORED, Boolean, GoCommand, from_environment
from netd.underlay import UnderlayWish, interface_regex
from podlane.api.subnets import DEFAULT_PREFIX
from podlane.errors import UsageError
from podlane.runtime import log
from podlane.runtime.options import DaemonOptions, daemon_options
from podlane.store.config import StoreConfig
from podlane.store.options import store_options_from

HEALTHZ_PORT = 10457

__all__ = ["HEALTHZ_PORT", "GoCommand", "RunOptions", "run_options"]


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the operator asked for; all durations in seconds.

    The `underlay`'s families are not in it yet: they are the network config's.
    """

    store: StoreConfig = field(default_factory=StoreConfig)
    daemon: DaemonOptions = field(default_factory=lambda: DaemonOptions(healthz_port=HEALTHZ_PORT))
    etcd_prefix: str = DEFAULT_PREFIX
    underlay: UnderlayWish = field(default_factory=UnderlayWish)
    subnet_file: Path = Path("/run/flannel/subnet.env")
    state_dir: Path = Path("/var/lib/netd")
    node_name: str = ""
    net_config_path: Path | None = None
    renew_margin: int = 3600
    subnet_quarantine: int = 3600
    ip_masq: bool = False
    random_fully: bool = True
    forward_rules: bool = True
    firewall_resync: float = 5.0
    blackhole_route: bool = False
    vxlan_guard: bool = False
    probe_interval: float = 10.0


_DEFAULTS = RunOptions()


# ---- what a value may be --------------------------------------------------------------------------


class _Number(click.ParamType[float]):
    """A number of `unit`, with `whole` an integer."""

    name = "number"

    def __init__(self, unit: str, low: float, high: float, *, whole: bool = True) -> None:
        self._low, self._high, self._whole = low, high, whole
        self._expected = f"expected {'whole ' if whole else ''}{unit} from {low:g} to {high:.10g}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        try:
            number = int(value) if self._whole else float(value)
        except ValueError:
            number = None
        if number is None or not self._low <= number <= self._high:
            self.fail(f'{self._expected}, got "{value}"', param, ctx)
        return number


class _Ip(click.ParamType[Any]):
    """An IP address, of one family or of either; empty is none."""

    name = "ip"

    def __init__(self, parse: Callable[[str], Any], expected: str) -> None:
        self._parse, self._expected = parse, expected

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if not value:
            return None
        try:
            address = self._parse(value)
        except ValueError:
            address = None
        if address is None or getattr(address, "scope_id", None):
            self.fail(f'expected an {self._expected} address, got "{value}"', param, ctx)
        return address


class _Names(click.ParamType[str]):
    """Interface names or addresses; a variable may hold several, with commas or spaces between."""

    name = "name|ip"

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return rv.replace(",", " ").split()


class _Regex(click.ParamType[str]):
    """A regular expression; a variable holds one, as for flanneld, since any character may belong to it."""

    name = "regex"

    def split_envvar_value(self, rv: str) -> Sequence[str]:
        return (rv,)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            interface_regex(value)
        except UsageError as error:
            self.fail(str(error), param, ctx)
        return str(value)


class _Prefix(click.ParamType[str]):
    name = "prefix"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        if not value.strip("/"):
            self.fail(f'expected a key prefix such as {DEFAULT_PREFIX}, got "{value}"', param, ctx)
        return str(value)


class _Path(click.Path):
    """A path that need not be there. `needed`: there is no doing without one."""

    def __init__(self, what: str, *, needed: bool = True) -> None:
        super().__init__(dir_okay=what != "file", file_okay=what == "file", path_type=Path)
        self._what, self._needed = what, needed

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        if value != "":
            return super().convert(value, param, ctx)
        if self._needed:
            self.fail(f'expected a {self._what}, got ""', param, ctx)
        return None


def _switch(default: bool) -> dict[str, Any]:
    return {"type": Boolean(), "default": str(default).lower(), "metavar": "[true|false]"}


# ---- the options ----------------------------------------------------------------------------------

# flanneld's flags: its name, click's settings, help
_FLANNELS: tuple[tuple[str, dict[str, Any], str], ...] = (
    (
        "etcd-prefix",
        {"type": _Prefix(), "default": _DEFAULTS.etcd_prefix, "metavar": "PREFIX"},
        "Where the network config and the leases are.",
    ),
    (
        "iface",
        {"type": _Names(), "multiple": True, "metavar": "NAME|IP"},
        "Interface that carries the overlay; of several the first that fits.  [default: the one that leads to etcd "
        "and the peers]",
    ),
    (
        "iface-regex",
        {"type": _Regex(), "multiple": True, "metavar": "REGEX"},
        "The same by a regular expression found in an address or a name; after every --iface.",
    ),
    (
        "iface-can-reach",
        {"type": _Ip(ip_address, "IP"), "metavar": "IP"},
        "The same by the route to this address; after every --iface-regex.",
    ),
    (
        "public-ip",
        {"type": _Ip(IPv4Address, "IPv4"), "metavar": "IP"},
        "IPv4 address that peers send to, which may be that of a NAT.  [default: the interface's]",
    ),
    (
        "public-ipv6",
        {"type": _Ip(IPv6Address, "IPv6"), "metavar": "IP"},
        "IPv6 address that peers send to.  [default: the interface's]",
    ),
    (
        "subnet-file",
        {"type": _Path("file"), "default": _DEFAULTS.subnet_file},
        "File that tells Docker and others which subnet this host has.",
    ),
    (
        "subnet-lease-renew-margin",
        {
            "type": _Number("minutes", 1, 24 * 60 - 1),
            "default": _DEFAULTS.renew_margin // 60,
            "metavar": "MINUTES",
        },
        "The lease is renewed at the latest so long before it expires.",
    ),
    (
        "net-config-path",
        {"type": _Path("file", needed=False)},
        "File with a network config, to be put into etcd if there is none yet.",
    ),
    (
        "ip-masq",
        _switch(_DEFAULTS.ip_masq),
        "Masquerade what pods send out of the pod network.",
    ),
    (
        "ip-masq-fully-random-disable",
        _switch(not _DEFAULTS.random_fully),
        "Do not pick the ports of masqueraded connections at random.",
    ),
    (
        "iptables-forward-rules",
        _switch(_DEFAULTS.forward_rules),
        "Accept pod traffic in iptables' FORWARD chain, whatever its policy is.",
    ),
    (
        "iptables-resync",
        {"type": _Number("seconds", 1, 86400), "default": int(_DEFAULTS.firewall_resync), "metavar": "SECONDS"},
        "How often the firewall is looked at, besides when it changes.",
    ),
    (
        "ip-blackhole-route",
        _switch(_DEFAULTS.blackhole_route),
        "Drop what is for a pod of this host that does not exist, instead of sending it on.",
    ),
)

_OWN: tuple[tuple[str, dict[str, Any], str], ...] = (
    (
        "state-dir",
        {"type": _Path("folder"), "default": _DEFAULTS.state_dir},
        "Where netd keeps what must survive a reboot: MAC addresses, and the last known network.",
    ),
    (
        "node-name",
        {"default": _DEFAULTS.node_name, "metavar": "NAME"},
        "This node's name.  [default: the host's name]",
    ),
    (
        "vxlan-guard",
        _switch(_DEFAULTS.vxlan_guard),
        "Admit VXLAN packets only from the addresses of current leases.",
    ),
    (
        "subnet-quarantine",
        {"type": _Number("seconds", 0, 10**9), "default": _DEFAULTS.subnet_quarantine, "metavar": "SECONDS"},
        "A subnet whose lease expired is left alone so long while others are free.",
    ),
    (
        "probe-interval",
        {
            "type": _Number("seconds", 0, 86400, whole=False),
            "default": int(_DEFAULTS.probe_interval),
            "metavar": "SECONDS",
        },
        "How often each peer is probed; 0 for never.",
    ),
)


def run_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Give a click command (of class GoCommand) the options of `netd run`.

    It receives them as `options: RunOptions`.
    """

    @wraps(command)
    def wrapper(*, store_config: StoreConfig, daemon_options: DaemonOptions, **given: Any) -> Any:
        options = _options(store_config, daemon_options, given)
        ignored = (*click.get_current_context().meta.get(IGNORED, ()), *from_environment(os.environ))
        if ignored:
            log.configure(daemon_options.log_level, daemon_options.log_format)
            log.get_logger("netd").info("flags without effect: --log-level says how much is logged", flags=ignored)
        return command(options=options)

    decorated: Callable[..., Any] = daemon_options(
        "netd", healthz_port=HEALTHZ_PORT, also_from=("FLANNELD",), zero_is_none=True
    )(wrapper)
    for prefixes, table in ((("NETD",), _OWN), (("NETD", "FLANNELD"), _FLANNELS)):
        for name, settings, text in reversed(table):
            decorated = click.option(
                f"--{name}",
                envvar=[f"{prefix}_{name.upper().replace('-', '_')}" for prefix in prefixes],
                show_envvar=True,
                show_default=settings.get("default") not in (None, ""),
                help=text,
                **settings,
            )(decorated)
    decorated = store_options_from("NETD", "PODLANE", "FLANNELD")(decorated)
    return click.version_option(package_name="podlane", prog_name="netd")(decorated)


def _options(store: StoreConfig, daemon: DaemonOptions, given: dict[str, Any]) -> RunOptions:
    return RunOptions(
        store=store,
        daemon=daemon,
        etcd_prefix=given["etcd_prefix"],
        underlay=UnderlayWish(
            ifaces=tuple(filter(None, given["iface"])),
            iface_regexes=tuple(filter(None, given["iface_regex"])),
            can_reach=given["iface_can_reach"],
            public_ip=given["public_ip"],
            public_ipv6=given["public_ipv6"],
        ),
        subnet_file=given["subnet_file"],
        state_dir=given["state_dir"],
        node_name=given["node_name"],
        net_config_path=given["net_config_path"],
        renew_margin=60 * given["subnet_lease_renew_margin"],
        subnet_quarantine=given["subnet_quarantine"],
        ip_masq=given["ip_masq"],
        random_fully=not given["ip_masq_fully_random_disable"],
        forward_rules=given["iptables_forward_rules"],
        firewall_resync=float(given["iptables_resync"]),
        blackhole_route=given["ip_blackhole_route"],
        vxlan_guard=given["vxlan_guard"],
        probe_interval=float(given["probe_interval"]),
    )
