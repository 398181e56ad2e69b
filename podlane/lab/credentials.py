"""The authority of a lab and the certificates of everybody in it, as files.

Invariants: they are made by what real hosts use (podlane.pki), only that here one
process makes them for all; what is there is left alone, so it may be repeated after
any failure; they are there before the lab's description is, so a lab without them
was made when labs had none.
"""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime

from podlane.host.emptylist import EMPTY_LIST
from podlane.lab.topology import HOLLOW, Host, Topology
from podlane.pki import profile
from podlane.pki.authority import KEY_FILE, Authority
from podlane.pki.files import issue_into
from podlane.pki.profile import NODE_DAEMONS, NODES, Profile
from podlane.runtime.atomic import write_atomic
from podlane.store.roles import OPERATOR, ROOT


def issue(lab: Topology) -> int:
    """Make what is missing; return how many certificates that were."""
    now = datetime.now(UTC)
    folder = lab.pki_dir
    authority = Authority.load(folder) if (folder / KEY_FILE).exists() else Authority.create(folder, now=now)
    if not lab.revocations.exists():
        write_atomic(lab.revocations, EMPTY_LIST)
    made = 0
    for name, host, says in _holders(lab):
        pem = lab.certificate(name, host).pem
        if not pem.exists():
            issue_into(pem.parent, name, authority, says, now=now)
            made += 1
    return made


def _holders(lab: Topology) -> Iterator[tuple[str, Host | None, Profile]]:
    """Whose certificates there are: the file's name, on which host, what it says."""
    yield OPERATOR, None, profile.operator(OPERATOR)
    yield ROOT, None, profile.administrator()
    for host in lab.hosts:
        if host.role == "server":
            addresses = (host.address, *((host.address6,) if lab.dual_stack else ()))
            yield "etcd", host, profile.etcd(host.name, addresses)
            yield "scheduler", host, profile.scheduler(host.name)
        elif host.role == "hollow":
            yield HOLLOW, host, Profile(HOLLOW, NODES, client=True)
        else:
            for daemon in NODE_DAEMONS:
                yield daemon, host, profile.node_daemon(daemon, host.name)
