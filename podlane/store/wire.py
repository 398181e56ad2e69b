"""Between the store's vocabulary and etcd's protobuf messages.

Owns: building requests and reading responses. Pure. Keys are UTF-8; bytes that
are not (another program's keys) survive the way there and back.
Source: api/etcdserverpb/rpc.proto.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from etcd3 import etcdrpc

from podlane.store.interface import Compare, Delete, Get, KeyValue, Op, Put, TxnResult, WatchEvent

_TARGETS = {"version": 0, "create": 1, "mod": 2, "value": 3, "lease": 4}  # Compare.CompareTarget
_FIELDS = {
    "version": "version",
    "create": "create_revision",
    "mod": "mod_revision",
    "value": "value",
    "lease": "lease",
}
_DELETE = 1  # mvccpb.Event.EventType


def key_bytes(key: str) -> bytes:
    return key.encode("utf-8", "surrogateescape")


def key_text(key: bytes) -> str:
    return key.decode("utf-8", "surrogateescape")


def range_end(prefix: bytes) -> bytes:
    """The first key after all that start with `prefix`; a zero byte is etcd's word for "to the end"."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b"\0"


def range_request(prefix: bytes, start: bytes, limit: int, revision: int, since: int = 0) -> Any:
    """A page of a list: up to `limit` keys from `start` on, as of `revision` (0: the latest), written since `since`."""
    return etcdrpc.RangeRequest(
        key=start or b"\0", range_end=range_end(prefix), limit=limit, revision=revision, min_mod_revision=since
    )


def get_request(key: str) -> Any:
    return etcdrpc.RangeRequest(key=key_bytes(key))


def txn_request(compare: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op]) -> Any:
    return etcdrpc.TxnRequest(
        compare=[_compare(c) for c in compare],
        success=[_request_op(op) for op in then],
        failure=[_request_op(op) for op in otherwise],
    )


def watch_request(prefix: str, start_revision: int, *, exact: bool = False) -> Any:
    key = key_bytes(prefix)
    create = etcdrpc.WatchCreateRequest(
        key=key or b"\0",
        range_end=b"" if exact else range_end(key),
        start_revision=start_revision,
        progress_notify=True,
    )
    return etcdrpc.WatchRequest(create_request=create)


def progress_request() -> Any:
    return etcdrpc.WatchRequest(progress_request=etcdrpc.WatchProgressRequest())


def key_value(kv: Any) -> KeyValue:
    return KeyValue(key_text(kv.key), kv.value, kv.create_revision, kv.mod_revision, kv.version, kv.lease)


def txn_result(response: Any) -> TxnResult:
    reads = tuple(
        tuple(key_value(kv) for kv in r.response_range.kvs)
        for r in response.responses
        if r.WhichOneof("response") == "response_range"
    )
    return TxnResult(response.succeeded, response.header.revision, reads, response.header.cluster_id)


def watch_event(event: Any) -> WatchEvent:
    return WatchEvent("delete" if event.type == _DELETE else "put", key_value(event.kv))


def _compare(compare: Compare) -> Any:
    return etcdrpc.Compare(
        result=etcdrpc.Compare.EQUAL,
        target=_TARGETS[compare.target],
        key=key_bytes(compare.key),
        **{_FIELDS[compare.target]: compare.operand},
    )


def _request_op(op: Op) -> Any:
    key = key_bytes(op.key)
    if isinstance(op, Put):
        put = etcdrpc.PutRequest(key=key, value=op.value, lease=op.lease)
        return etcdrpc.RequestOp(request_put=put)
    end = range_end(key) if op.prefix else b""
    if isinstance(op, Get):
        return etcdrpc.RequestOp(request_range=etcdrpc.RangeRequest(key=key, range_end=end))
    assert isinstance(op, Delete)
    return etcdrpc.RequestOp(request_delete_range=etcdrpc.DeleteRangeRequest(key=key, range_end=end))
