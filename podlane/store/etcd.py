"""The store on etcd v3 (3.4 or later), by the generated stubs of the etcd3 package.

Owns: the Store interface in terms of etcd's calls. Invariants are those of
interface.py; fail-over and errors are endpoints.py's, streams etcd_watch.py's.
Why not the etcd3 package's own client: docs/adr/0001.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from etcd3 import etcdrpc

from podlane.errors import PermissionDenied, StoreUnavailable
from podlane.store import wire
from podlane.store.config import StoreConfig
from podlane.store.endpoints import Endpoints, Stubs
from podlane.store.etcd_watch import open_watch
from podlane.store.interface import (
    DEFAULT_TIMEOUT,
    Compacted,
    Compare,
    Get,
    KeyValue,
    LeaseNotFound,
    Listing,
    Op,
    TxnResult,
    Watch,
)

PAGE = 2000  # keys; a page of pods is about 4 MB
LIST_ATTEMPTS = 5
_NAMED = 5  # keys of a transaction that was refused


class EtcdStore:
    """Thread-safe. Connects at the first call."""

    def __init__(self, config: StoreConfig) -> None:
        """Raises Invalid when a file named in the config cannot be read."""
        self._endpoints = Endpoints(config)

    def get(self, key: str, *, timeout: float = DEFAULT_TIMEOUT) -> KeyValue | None:
        request = wire.get_request(key)
        response = self._endpoints.call(
            f"get {key}", lambda stubs: stubs.kv.Range, request, timeout=timeout, repeatable=True
        )
        return wire.key_value(response.kvs[0]) if response.kvs else None

    def list(self, prefix: str, *, since: int = 0, timeout: float = DEFAULT_TIMEOUT) -> Listing:
        for attempt in range(LIST_ATTEMPTS):
            items: tuple[KeyValue, ...] = ()
            try:
                pages = list(self._pages(prefix, since, timeout))
            except Compacted:
                if attempt == LIST_ATTEMPTS - 1:
                    raise StoreUnavailable(f"list {prefix}: compacted faster than it can be read") from None
            else:
                items = tuple(kv for page in pages for kv in page.items)
                return Listing(items, pages[-1].revision, pages[-1].cluster_id)
        raise AssertionError("unreachable")

    def pages(self, prefix: str, *, timeout: float = DEFAULT_TIMEOUT) -> Iterator[Listing]:
        return self._pages(prefix, 0, timeout)

    def _pages(self, prefix: str, since: int, timeout: float) -> Iterator[Listing]:
        start = key = wire.key_bytes(prefix)
        revision = 0
        while True:
            response = self._endpoints.call(
                f"list {prefix}",
                lambda stubs: stubs.kv.Range,
                wire.range_request(key, start, PAGE, revision, since),
                timeout=timeout,
                repeatable=True,
            )
            revision = revision or response.header.revision
            items = tuple(wire.key_value(kv) for kv in response.kvs)
            more = response.more
            if more:
                start = response.kvs[-1].key + b"\0"
            cluster_id = response.header.cluster_id
            del response
            yield Listing(items, revision, cluster_id)
            if not more:
                return

    def txn(
        self,
        compare: Sequence[Compare],
        then: Sequence[Op],
        otherwise: Sequence[Op] = (),
        *,
        timeout: float = DEFAULT_TIMEOUT,
    ) -> TxnResult:
        try:
            response = self._endpoints.call(
                _describe(then, otherwise),
                lambda stubs: stubs.kv.Txn,
                wire.txn_request(compare, then, otherwise),
                timeout=timeout,
                repeatable=all(isinstance(op, Get) for op in (*then, *otherwise)),
            )
        except PermissionDenied as error:  # of which of them etcd does not say
            raise PermissionDenied(f"{error}{_all_keys(compare, then, otherwise)}") from error
        return wire.txn_result(response)

    def watch(self, prefix: str, *, start_revision: int, timeout: float = DEFAULT_TIMEOUT) -> Watch:
        return open_watch(self._endpoints, {prefix: start_revision}, timeout)

    def watch_many(self, starts: Mapping[str, int], *, exact: bool = False, timeout: float = DEFAULT_TIMEOUT) -> Watch:
        return open_watch(self._endpoints, starts, timeout, exact=exact)

    def grant(self, ttl: int, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        # done twice it leaves a lease without keys, which ends by itself
        response = self._lease_call("grant lease", "LeaseGrant", etcdrpc.LeaseGrantRequest(TTL=ttl), timeout)
        return int(response.ID)

    def keep_alive(self, lease: int, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        response = self._endpoints.call(
            f"keep lease {lease:x} alive",
            _keep_alive_once,
            etcdrpc.LeaseKeepAliveRequest(ID=lease),
            timeout=timeout,
            repeatable=True,
        )
        if response.TTL <= 0:
            raise LeaseNotFound(f"keep lease {lease:x} alive: lease not found")
        return int(response.TTL)

    def keep_alive_many(self, leases: Sequence[int], *, timeout: float = DEFAULT_TIMEOUT) -> dict[int, int]:
        requests = [etcdrpc.LeaseKeepAliveRequest(ID=lease) for lease in leases]
        answers = self._endpoints.call(
            f"keep {len(leases)} leases alive", _keep_alive_all, requests, timeout=timeout, repeatable=True
        )
        return {int(answer.ID): int(answer.TTL) for answer in answers if answer.TTL > 0}

    def time_to_live(self, lease: int, *, timeout: float = DEFAULT_TIMEOUT) -> int:
        request = etcdrpc.LeaseTimeToLiveRequest(ID=lease)
        response = self._lease_call(f"read lease {lease:x}", "LeaseTimeToLive", request, timeout)
        if response.TTL < 0:
            raise LeaseNotFound(f"read lease {lease:x}: lease not found")
        return int(response.TTL)

    def revoke(self, lease: int, *, timeout: float = DEFAULT_TIMEOUT) -> None:
        request = etcdrpc.LeaseRevokeRequest(ID=lease)
        try:
            self._lease_call(f"revoke lease {lease:x}", "LeaseRevoke", request, timeout)
        except LeaseNotFound:
            return

    def close(self) -> None:
        self._endpoints.close()

    def _lease_call(self, action: str, method: str, request: Any, timeout: float) -> Any:
        def rpc(stubs: Stubs) -> Any:
            return getattr(stubs.lease, method)

        return self._endpoints.call(action, rpc, request, timeout=timeout, repeatable=True)


def _keep_alive_once(stubs: Stubs) -> Any:
    """LeaseKeepAlive is a stream; one renewal needs one question and one answer of it."""

    def call(request: Any, **options: Any) -> Any:
        stream = stubs.lease.LeaseKeepAlive(iter((request,)), **options)
        try:
            for response in stream:
                return response
        finally:
            stream.cancel()
        raise StoreUnavailable("stream ended without an answer")

    return call


def _keep_alive_all(stubs: Stubs) -> Any:
    """Many renewals over one stream, which answers each question in its turn."""

    def call(requests: Sequence[Any], **options: Any) -> list[Any]:
        stream = stubs.lease.LeaseKeepAlive(iter(requests), **options)
        try:
            return list(itertools.islice(stream, len(requests)))
        finally:
            stream.cancel()

    return call


def _all_keys(compare: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]) -> str:
    """What a transaction is about, if that is more than `_describe` names; a comparison is reading."""
    keys = list(dict.fromkeys(each.key for each in (*then, *otherwise, *compare)))
    more = f" and {len(keys) - _NAMED} more" if len(keys) > _NAMED else ""
    return f" (for one of {', '.join(keys[:_NAMED])}{more})" if len(keys) > 1 else ""


def _describe(then: Sequence[Op], otherwise: Sequence[Op]) -> str:
    ops = then or otherwise
    more = f" and {len(ops) - 1} more" if len(ops) > 1 else ""
    return f"txn on {ops[0].key}{more}" if ops else "txn"
