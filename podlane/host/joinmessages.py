"""What a host that joins and the join service say to each other.

Owns: the paths, the bodies (JSON) and their sizes. Invariant: a body that decodes has no
text longer and no list larger than a client of ours sends, so nothing that follows has to
think of size.
"""

from __future__ import annotations

from typing import Annotated, Literal

import msgspec
from msgspec import Meta

PORT = 10261
JOIN = "/v1/join"
RENEW = "/v1/renew"
BUNDLE = "/v1/bundle"

MAX_REQUEST = 1 << 16
"""Bytes of a request, head and body."""
MAX_ANSWER = 1 << 20

HostRole = Literal["node", "server"]

Word = Annotated[str, Meta(min_length=1, max_length=253)]
Csr = Annotated[str, Meta(max_length=8192)]
Csrs = Annotated[dict[Annotated[str, Meta(max_length=16)], Csr], Meta(max_length=6)]


class JoinRequest(msgspec.Struct, frozen=True, rename="camel"):
    """`csrs` by file name (`netd`): a node's three, a server's three, or all six for a server that runs pods too."""

    token: Word
    role: HostRole
    name: Word
    addresses: Annotated[tuple[Annotated[str, Meta(max_length=64)], ...], Meta(min_length=1, max_length=4)]
    csrs: Csrs


class JoinAnswer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """`certificates` by file name; `endpoints` are etcd's client URLs, `services` the join services'.

    `subnets` is a node's share of the pod network; `authority` the authority's key, for a server whose token says so;
    `revocations` the list of revoked certificates, "" when there is none.
    """

    name: str
    certificates: dict[str, str]
    bundle: str
    endpoints: tuple[str, ...]
    services: tuple[str, ...] = ()
    subnets: str = ""
    authority: str = ""
    revocations: str = ""


class RenewRequest(msgspec.Struct, frozen=True, rename="camel"):
    """Without any, it asks for the rest of the answer."""

    csrs: Csrs


class RenewAnswer(msgspec.Struct, frozen=True, rename="camel", omit_defaults=True):
    """As JoinAnswer."""

    certificates: dict[str, str]
    bundle: str
    endpoints: tuple[str, ...]
    services: tuple[str, ...]
    revocations: str = ""


class Problem(msgspec.Struct, frozen=True, rename="camel"):
    """The body of every answer but 200."""

    error: str
