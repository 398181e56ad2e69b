"""What proxyds acknowledge, read back from both stores."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import structlog

from podlane.api.types import Condition, Node, NodeStatus, ObjectMeta
from podlane.errors import StoreUnavailable
from podlane.store import keys, proxies
from podlane.store.interface import Put, Store
from podlane.store.memory import MemoryStore
from podlane.store.registry import Registry

pytestmark = pytest.mark.contract


def eventually(condition: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 10
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_acknowledgements_are_followed(store: Store) -> None:
    proxies.acknowledge(store, "n1", 5)
    proxies.acknowledge(store, "n2", 6)
    seen = proxies.Acknowledgements(store)
    assert seen.look() == {"n1": 5, "n2": 6}
    proxies.acknowledge(store, "n1", 9)
    eventually(lambda: seen.look() == {"n1": 9, "n2": 6})
    proxies.withdraw(store, "n2")
    eventually(lambda: seen.look() == {"n1": 9})
    seen.close()
    proxies.acknowledge(store, "n3", 1)
    assert seen.look() == {"n1": 9, "n3": 1}
    seen.close()


def test_what_cannot_be_read_is_nobody_to_wait_for_and_told_once(store: Store) -> None:
    store.txn([], [Put(keys.proxy_key("n1"), b"7")])
    store.txn([], [Put(keys.proxy_key("n2"), b'{"revision": 7, "of": "a later version"}')])
    seen = proxies.Acknowledgements(store)
    with structlog.testing.capture_logs() as logs:
        assert seen.look() == {"n2": 7}
        store.txn([], [Put(keys.proxy_key("n1"), b"{}"), Put(keys.proxy_key("n2"), b'{"revision": "8"}')])
        eventually(lambda: seen.look() == {})
        proxies.acknowledge(store, "n1", 9)
        eventually(lambda: seen.look() == {"n1": 9})
    seen.close()
    assert [(log["event"], log["key"]) for log in logs] == [
        ("not waited for", "/podlane/proxies/n1"),
        ("not waited for", "/podlane/proxies/n2"),
    ]


def test_nodes_live_while_they_have_a_heartbeat(store: Store) -> None:
    registry = Registry(store)
    names = [f"n{i}" for i in range(proxies.MAX_GETS + 5)]
    lease = store.grant(60)
    for name in (names[0], names[-1]):
        registry.put_node_lease(name, lease, 60)
    assert proxies.living(store, names) == {names[0], names[-1]}
    assert proxies.living(store, []) == frozenset()
    store.revoke(lease)
    assert proxies.living(store, names) == frozenset()


def test_who_is_not_ready(store: Store) -> None:
    registry = Registry(store)
    for name, status in (("well", "True"), ("ill", "False"), ("lost", "Unknown")):
        conditions = (Condition(type="Ready", status=status),)
        registry.create(Node(metadata=ObjectMeta(name=name), status=NodeStatus(conditions=conditions)))
    registry.create(Node(metadata=ObjectMeta(name="new")))
    store.txn([], [Put(keys.key_for(Node, "", "garbage"), b"7")])
    assert proxies.unready(store, ["well", "ill", "lost", "new", "garbage", "none"]) == {"ill", "lost", "garbage"}


def test_a_store_that_went_away_is_told_and_then_begun_with_anew() -> None:
    store = MemoryStore()
    proxies.acknowledge(store, "n1", 5)
    seen = proxies.Acknowledgements(store)
    assert seen.look() == {"n1": 5}
    store.faults.set_down(True)
    for _ in range(2):
        with pytest.raises(StoreUnavailable):
            seen.look()
    store.faults.set_down(False)
    proxies.acknowledge(store, "n1", 6)
    assert seen.look() == {"n1": 6}
    seen.close()
