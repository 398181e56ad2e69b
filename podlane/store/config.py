"""Where the store is and who we are to it.

Owns: the endpoint syntax and the rules for TLS and passwords. Invariant: a
config that could be made can be connected to without further checks, but for
the files it names. gRPC is imported by `connect` only: it is the heaviest
thing a command loads.
"""

from __future__ import annotations

import socket
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from podlane.errors import FieldError, Invalid

if TYPE_CHECKING:
    from podlane.store.interface import Store

DEFAULT_ENDPOINT = "http://127.0.0.1:2379"
DEFAULT_PORT = 2379


@dataclass(frozen=True, slots=True)
class StoreConfig:
    """`endpoints` are URLs, `host:port` or `host`; without a scheme they are https if there is a `cafile`.

    `timeout` is how many seconds an endpoint may take to show that it is
    alive before the next one is tried; it is not the deadline of a call.
    Raises Invalid.
    """

    endpoints: tuple[str, ...] = (DEFAULT_ENDPOINT,)
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    username: str = ""
    password: str = ""
    timeout: float = 2.0

    def __post_init__(self) -> None:
        errors = [
            FieldError(f"endpoints[{i}]", problem)
            for i, endpoint in enumerate(self.endpoints)
            if (problem := _problem_of(self._url(endpoint)))
        ]
        if not self.endpoints:
            errors.append(FieldError("endpoints", "expected at least one"))
        if bool(self.certfile) != bool(self.keyfile):
            errors.append(FieldError("certfile", "a client certificate needs both its file and its key file"))
        if self.password and not self.username:
            errors.append(FieldError("password", "given without a username"))
        if self.timeout <= 0:
            errors.append(FieldError("timeout", f"expected seconds > 0, got {self.timeout}"))
        if errors:
            raise Invalid("etcd", errors)

    def __repr__(self) -> str:
        """Without the password."""
        return f"StoreConfig({','.join(self.endpoints)} cafile={self.cafile!r} username={self.username!r})"

    @property
    def targets(self) -> tuple[tuple[str, bool], ...]:
        """(`host:port`, whether TLS) of each endpoint, in the order given."""
        urls = (urlsplit(self._url(endpoint)) for endpoint in self.endpoints)
        return tuple((_host_port(url.netloc), url.scheme == "https") for url in urls)

    def _url(self, endpoint: str) -> str:
        if "://" in endpoint:
            return endpoint
        return f"{'https' if self.cafile else 'http'}://{endpoint}"


def parse_endpoints(text: str) -> tuple[str, ...]:
    """`a:2379,b:2379` as the options and environment variables give it."""
    return tuple(part.strip().rstrip("/") for part in text.split(",") if part.strip())


def resolve(config: StoreConfig) -> tuple[IPv4Address | IPv6Address, ...]:
    """The endpoints' addresses; a name that cannot be resolved gives none."""
    found: list[IPv4Address | IPv6Address] = []
    for target, _ in config.targets:
        host, _, port = target.rpartition(":")
        try:
            answers = socket.getaddrinfo(host.strip("[]"), port, type=socket.SOCK_STREAM)
        except OSError:
            continue
        found += (ip_address(answer[4][0]) for answer in answers)
    return tuple(dict.fromkeys(found))


def connect(config: StoreConfig) -> Store:
    """Make the client. Nothing is sent before the first call, so this never fails for want of an etcd.

    Raises Invalid when a file named in the config cannot be read.
    """
    from podlane.store.etcd import EtcdStore

    return EtcdStore(config)


def _problem_of(url: str) -> str:
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        return f'expected URL, got "{url}": {error}'
    if parts.scheme not in {"http", "https"}:
        return f'expected scheme http or https, got "{url}"'
    if not parts.hostname or parts.path.strip("/") or parts.query or parts.username or port == 0:
        return f'expected [http[s]://]host[:port], got "{url}"'
    return ""


def _host_port(netloc: str) -> str:
    has_port = netloc.rpartition("]")[2].find(":") >= 0
    return netloc if has_port else f"{netloc}:{DEFAULT_PORT}"
