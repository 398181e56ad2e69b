"""What contract tests share: both stores, and hosts on them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from podlane.store.config import connect
from podlane.store.interface import Delete, Store
from podlane.store.memory import MemoryStore
from tests.conftest import Etcd
from tests.contract.netd_hosts import Host, NewHost


@pytest.fixture(params=["memory", "etcd"])
def store(request: pytest.FixtureRequest) -> Iterator[Store]:
    if request.param == "memory":
        yield MemoryStore()
        return
    etcd: Etcd = request.getfixturevalue("etcd")
    store = connect(etcd.client_config)
    yield store
    store.close()


@pytest.fixture(params=["memory", "etcd"])
def registry_store(request: pytest.FixtureRequest) -> Iterator[Store]:
    """Either store, without an object in it; the etcd is shared by all tests."""
    if request.param == "memory":
        yield MemoryStore()
        return
    etcd: Etcd = request.getfixturevalue("shared_etcd")
    store = connect(etcd.client_config)
    store.txn([], [Delete("/registry/", prefix=True), Delete("/podlane/", prefix=True)])
    yield store
    store.close()


@pytest.fixture
def host(store: Store) -> Iterator[NewHost]:
    hosts: list[Host] = []

    def new(number: int = 1, **options: object) -> Host:
        hosts.append(Host(store, number, **options))  # type: ignore[arg-type]
        return hosts[-1]

    yield new
    for each in hosts:
        each.killed()
