"""What an operator asks of `install`, checked as a whole.

Owns: the options and the rules between them. Invariant: options that could be
made can be carried out as far as can be told without looking at a machine; all
that is wrong is told at once. They are kept in layout.RECORD, so that an upgrade
knows what the host is.
"""

from __future__ import annotations

from collections.abc import Iterator
from ipaddress import ip_address

import msgspec

from podlane.api.names import dns_subdomain_error
from podlane.errors import FieldError, Invalid
from podlane.host.layout import NODE_DAEMONS, Daemon, Role
from podlane.store.config import StoreConfig

LONGEST_NAME = 53
"""Characters: with `scheduler@` before it a name must fit into a certificate's 64."""


class InstallOptions(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """`init` are arguments for `podlane init`. Files are on this host, wherever the operator put them.

    `etcd` says where an etcd is already; without it, and without `join`, a server gets one of its own.
    `etcd_join` are the members of the cluster (`NAME=URL`) that this server's etcd joins as a further one.
    `admits`: with `join`, whose token must bring the authority's key, run a join service here as well.
    """

    role: Role
    name: str = ""
    addresses: tuple[str, ...] = ()
    iface: str = ""
    etcd: tuple[str, ...] = ()
    ca: str = ""
    cert: str = ""
    key: str = ""
    cert_dir: str = ""
    join: str = ""
    etcd_join: tuple[str, ...] = ()
    admits: bool = False
    init: tuple[str, ...] = ()
    ip_masq: bool = True
    firewalld: bool = False

    @property
    def own_etcd(self) -> bool:
        return self.role != "node" and not self.etcd

    @property
    def founds(self) -> bool:
        """Whether this host makes the cluster, with an authority of its own."""
        return self.own_etcd and not self.join

    @property
    def has_authority(self) -> bool:
        return self.founds or self.admits

    @property
    def tls(self) -> bool:
        return not self.etcd or bool(self.ca)

    @property
    def daemons(self) -> tuple[Daemon, ...]:
        """In the order they start."""
        server: tuple[Daemon, ...] = ()
        if self.own_etcd:
            # without the authority's key it cannot admit others
            server = ("etcd", "join", "scheduler") if self.has_authority else ("etcd", "scheduler")
        elif self.role != "node":
            server = ("scheduler",)
        return (*server, *(NODE_DAEMONS if self.role != "server" else ()))


def check(options: InstallOptions, *, token: str = "") -> None:
    """Raises Invalid with everything that is wrong."""
    errors = [FieldError(f"--{field.replace('_', '-')}", text) for field, text in _problems(options, token)]
    if errors:
        raise Invalid("install", errors)


def name_error(name: str) -> str | None:
    """As Kubernetes names nodes, and short enough for a certificate."""
    if error := dns_subdomain_error(name):
        return error
    return f"expected at most {LONGEST_NAME} characters, got {len(name)}" if len(name) > LONGEST_NAME else None


def _problems(options: InstallOptions, token: str) -> Iterator[tuple[str, str]]:
    if options.name and (error := name_error(options.name)):
        yield "name", error
    yield from _address_problems(options)
    yield from _etcd_problems(options)
    if options.join and not token:
        yield "token", "expected the token that `podlane join-token` prints, with --join"
    if token and not options.join:
        yield "join", "expected the URL of a join service, with --token"
    if options.admits and (options.role == "node" or not options.join):
        yield "admits", "is for a further server, with --join and a token of `podlane join-token --authority-key`"
    if options.join and not options.join.startswith("https://"):
        yield "join", f'expected https://HOST:PORT, got "{options.join}"'
    if options.init and not options.founds:
        yield "network", "these are settings of the cluster: only for the host that makes it (--role server or all)"


def _address_problems(options: InstallOptions) -> Iterator[tuple[str, str]]:
    families = []
    for text in options.addresses:
        try:
            families.append(ip_address(text).version)
        except ValueError:
            yield "address", f'expected an IP address, got "{text}"'
    if len(set(families)) != len(families):
        yield "address", f"expected one address, or one of each family, got {','.join(options.addresses)}"


def _etcd_problems(options: InstallOptions) -> Iterator[tuple[str, str]]:
    if options.etcd and options.join:
        yield "etcd", "--join tells where etcd is; leave one of the two out"
    if options.role == "node" and not options.etcd and not options.join:
        yield "join", "a node needs --join URL --token TOKEN, or --etcd URL with --ca and --cert-dir"
    if options.etcd:
        try:
            config = StoreConfig(endpoints=options.etcd, cafile=options.ca)
        except Invalid as error:
            yield from (("etcd", each.message) for each in error.errors)
        else:
            if any(tls for _, tls in config.targets) and not options.ca:
                yield "ca", "expected the file of the authority that signed etcd's certificate"
    elif options.ca or options.cert or options.cert_dir:
        yield "etcd", "expected etcd's URLs, with --ca, --cert and --cert-dir"
    if bool(options.cert) != bool(options.key):
        yield "cert", "a certificate and its key: expected both --cert and --key, or none"
    if options.cert and options.cert_dir:
        yield "cert-dir", "expected --cert and --key (one for all daemons) or --cert-dir (one each), got both"
    if options.ca and not options.cert and not options.cert_dir:
        yield (
            "cert-dir",
            "with --ca: expected --cert-dir DIR (NAME.pem, NAME.key of each daemon) or --cert and --key",
        )
    yield from _member_problems(options)


def _member_problems(options: InstallOptions) -> Iterator[tuple[str, str]]:
    if options.etcd_join and (not options.join or options.role == "node"):
        yield "etcd-join", "is for a further server, with --join and --role server or all"
    if options.join and options.role != "node" and not options.etcd_join:
        yield "etcd-join", "a further server needs it: `podlane etcd add-member` prints it"
    for member in options.etcd_join:
        name, equals, url = member.partition("=")
        if not equals or name_error(name) or not url.startswith("https://"):
            yield "etcd-join", f'expected NAME=https://ADDRESS:2380,…, got "{member}"'
