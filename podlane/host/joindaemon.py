"""The join service's process: the port, a key in the store that tells operators where it is, and revocations.

Owns: how the parts are put together. Invariant: the key is there while the service answers,
give or take ANNOUNCEMENT_TTL, so `podlane join-token` never prints a line that leads nowhere.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import msgspec

from podlane import __version__
from podlane.errors import PodlaneError
from podlane.host import snapshotage
from podlane.host.joincall import ServiceUrl
from podlane.host.joinserver import Certificate, JoinServer
from podlane.host.joinservice import JoinService, ServiceRecord, since
from podlane.host.jointokens import ca_hash
from podlane.host.revoking import Keeper
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import Repetition, get_logger
from podlane.runtime.options import DaemonOptions
from podlane.store import keys
from podlane.store.administration import Administration
from podlane.store.config import StoreConfig, connect
from podlane.store.interface import LeaseNotFound, Put, Store
from podlane.store.roles import shared_roles

ANNOUNCEMENT_TTL = 60
_PAUSE = 3.0
"""Seconds between looks at the authority's file: a rotation is waiting to see it told."""
ANY = "::"
"""All addresses of both families."""

_log = get_logger("join")


def run_daemon(
    name: str,
    addresses: Sequence[str],
    listen: tuple[str, int],
    *,
    folder: Path,
    store_config: StoreConfig,
    options: DaemonOptions,
) -> int:
    """Run until a signal and return the exit code. `addresses` are what hosts are told to come to."""
    clock = SystemClock()
    daemon = options.make_daemon("join", clock=clock)
    store, etcd = connect(store_config), Administration(store_config)
    daemon.on_stop(store.close)
    daemon.on_stop(etcd.close)
    service = JoinService(store, etcd, folder, clock=clock)
    server = _listen(*listen, service=service, certificate=Certificate(folder))
    urls = tuple(str(ServiceUrl(address, server.port)) for address in addresses)
    announcement = Announcement(store, name, urls, service, clock)
    daemon.add_thread("serve", server.serve)
    daemon.add_thread("announce", announcement.run)
    daemon.add_thread("roles", partial(_roles, etcd, clock))
    daemon.add_thread("revocations", Keeper(store, name, folder, service.authority, clock).run)
    daemon.add_ready_check("announced", announcement.not_ready)
    snapshotage.tell()
    _log.info("serving", urls=",".join(urls))
    return daemon.run()


def _listen(host: str, port: int, *, service: JoinService, certificate: Certificate) -> JoinServer:
    try:
        return JoinServer(host, port, service=service, certificate=certificate)
    except PodlaneError:
        if host != ANY:
            raise
        return JoinServer("0.0.0.0", port, service=service, certificate=certificate)  # a kernel without IPv6


def _roles(etcd: Administration, clock: Clock, stop: threading.Event) -> None:
    widen_roles(etcd, clock, stop)
    stop.wait()  # a thread that ends would end the daemon


def widen_roles(etcd: Administration, clock: Clock, stop: threading.Event) -> None:
    """Grant what this version's daemons need and an earlier one's did not. Until that is done, or `stop`.

    Nothing is revoked: other hosts are perhaps still to be upgraded. Source: Kubernetes' auto-reconciliation of its
    RBAC roles at each start of an API server.
    """
    repetition = Repetition()
    while not stop.is_set():
        try:
            for role in shared_roles():
                etcd.ensure_role(role, narrow=False)
            return
        except PodlaneError as error:
            if repetition.is_news(str(error), clock.monotonic()):
                _log.warning("roles not looked at, will try again", error=str(error))
            clock.wait(stop, _PAUSE)


class Announcement:
    """Keeps the service's key in the store, on a lease of its own."""

    def __init__(self, store: Store, name: str, urls: tuple[str, ...], service: JoinService, clock: Clock) -> None:
        self._store = store
        self._key = keys.join_service_key(name)
        self._urls = urls
        self._service = service
        self._clock = clock
        self._lease = 0
        self._problem: str | None = "not yet"
        self._repetition = Repetition()

    def not_ready(self) -> str | None:
        return self._problem

    def run(self, stop: threading.Event) -> None:
        """Tell, and see to it that it stays told, until `stop` is set."""
        while not stop.is_set():
            try:
                self._tell()
                self._problem = None
                self._repetition.over()
            except PodlaneError as error:
                self._problem = str(error)
                self._withdraw()
                if self._repetition.is_news(self._problem, self._clock.monotonic()):
                    _log.warning("not announced, will try again", error=self._problem)
            self._clock.wait(stop, _PAUSE)
        self._withdraw()

    def _withdraw(self) -> None:
        if self._lease:
            try:
                self._store.revoke(self._lease)
                self._lease = 0
            except PodlaneError as error:
                _log.debug("announcement not withdrawn, it runs out by itself", error=str(error))

    def _tell(self) -> None:
        authority = self._service.authority()
        record = ServiceRecord(self._urls, ca_hash(authority.bundle), since(authority), __version__)
        value = msgspec.json.encode(record)
        try:
            if self._lease:
                self._store.keep_alive(self._lease)
        except LeaseNotFound:
            self._lease = 0
        self._lease = self._lease or self._store.grant(ANNOUNCEMENT_TTL)
        there = self._store.get(self._key)
        if there is None or (there.value, there.lease) != (value, self._lease):
            self._store.txn([], [Put(self._key, value, self._lease)])
