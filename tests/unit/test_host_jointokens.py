"""Join tokens on a store in memory: their form, their end, their uses."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest

from podlane.errors import NotFound, PodlaneError, UsageError
from podlane.host import jointokens
from podlane.host.joincall import ServiceUrl
from podlane.host.jointokens import JoinToken, count_use, find
from podlane.host.jointries import MAX_SOURCES, SECONDS, TRIES, Tries
from podlane.pki.authority import Authority
from podlane.runtime.clock import FakeClock
from podlane.store.interface import Put
from podlane.store.memory import MemoryStore

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 29, tzinfo=UTC)
HASH = "A" * 43


def test_a_token_is_one_word_and_reads_back() -> None:
    token, _ = jointokens.create(MemoryStore(), authority_hash=HASH, now=NOW)
    assert JoinToken.parse(f" {token}\n") == token
    assert str(token).count(".") == 2
    assert token.secret not in repr(token)


@pytest.mark.parametrize("text", ["", "abc", "abcdefgh.short.hash", f"ABCDEFGH.{'a' * 22}.{'a' * 43}", "a" * 10_000])
def test_what_is_no_token_is_told_so(text: str) -> None:
    with pytest.raises(UsageError, match=f"got {len(text)} characters; was all of it pasted"):
        JoinToken.parse(text)


def test_the_store_has_no_secret_and_forgets_the_token_in_time() -> None:
    clock = FakeClock()
    store = MemoryStore(clock=clock)
    token, record = jointokens.create(store, authority_hash=HASH, now=NOW, ttl=3600, uses=2)
    assert (record.created, record.expires) == ("2026-11-29T00:00:00Z", "2026-11-29T01:00:00Z")
    assert token.secret.encode() not in b"".join(kv.value for kv in store.list("/").items)
    found = find(store, token.id)
    assert found is not None
    assert found.record.opens(token.secret)
    assert not found.record.opens(token.secret[:-1] + "-")
    clock.advance(3601)
    assert find(store, token.id) is None
    assert count_use(store, found, "web1") == "gone"


def test_each_name_counts_once() -> None:
    store = MemoryStore()
    token, _ = jointokens.create(store, authority_hash=HASH, now=NOW, uses=2)
    found = find(store, token.id)
    assert found is not None
    # all from the same old look at it, as several services have it
    counted = [count_use(store, found, name) for name in ("web1", "web2", "web1", "web3")]
    assert counted == ["counted", "counted", "counted before", "used up"]
    (listed,) = jointokens.listing(store)
    assert listed.record.used == ("web1", "web2")
    assert store.time_to_live(listed.lease) > 0


def test_a_deleted_token_is_gone_and_its_lease_with_it() -> None:
    store = MemoryStore()
    token, _ = jointokens.create(store, authority_hash=HASH, now=NOW)
    jointokens.create(store, authority_hash=HASH, now=NOW, role="server")
    jointokens.delete(store, token.id)
    assert [each.record.role for each in jointokens.listing(store)] == ["server"]
    with pytest.raises(NotFound, match=f"delete join token {token.id}: there is none"):
        jointokens.delete(store, token.id)


@pytest.mark.parametrize(
    ("wish", "why"),
    [
        ({"ttl": 59}, "from 1m to 720h, got 59 s"),
        ({"uses": 0}, "1 to 1000 uses, got 0"),
        ({"node": "web1", "uses": 2}, "one for web1 alone has one use"),
        ({"authority": True}, "only a server can be given the authority's key"),
    ],
)
def test_a_token_that_makes_no_sense_is_refused(wish: dict[str, object], why: str) -> None:
    store = MemoryStore()
    with pytest.raises(UsageError, match=why):
        jointokens.create(store, authority_hash=HASH, now=NOW, **wish)  # type: ignore[arg-type]
    assert store.list("/").items == ()


def test_who_may_write_node_tokens_makes_no_server_token_of_one() -> None:
    store = MemoryStore()
    token, _ = jointokens.create(store, authority_hash=HASH, now=NOW)
    found = find(store, token.id)
    assert found is not None
    forged = {**json.loads(store.list("/").items[0].value), "role": "server", "authority": True}
    store.txn([], [Put(found.key, json.dumps(forged).encode())])
    with pytest.raises(PodlaneError, match="a token of role server does not belong there"):
        find(store, token.id)


def test_the_hash_is_that_of_the_authoritys_key(tmp_path) -> None:
    authority = Authority.create(tmp_path / "one", now=NOW)
    other = Authority.create(tmp_path / "other", now=NOW)
    assert jointokens.ca_hash(authority.bundle) == jointokens.ca_hashes(authority.bundle + other.bundle)[0]
    assert jointokens.ca_hash(authority.bundle) != jointokens.ca_hash(other.bundle)
    assert len(jointokens.ca_hash(authority.bundle)) == len(HASH)
    with pytest.raises(PodlaneError, match="read authority's certificate"):
        jointokens.ca_hash("-----BEGIN CERTIFICATE-----\nnone\n-----END CERTIFICATE-----\n")


@pytest.mark.parametrize(
    ("text", "url"),
    [
        ("https://10.0.0.1:10261", "https://10.0.0.1:10261"),
        ("https://s1.example.com/", "https://s1.example.com:10261"),
        ("10.0.0.1", "https://10.0.0.1:10261"),
        ("[fd00::1]:443", "https://[fd00::1]:443"),
    ],
)
def test_a_service_is_named_by_as_little_as_its_host(text: str, url: str) -> None:
    assert str(ServiceUrl.parse(text)) == url


@pytest.mark.parametrize(
    "text", ["http://10.0.0.1", "https://", "https://a:0", "https://a:99999", "https://a/x", "https://[::"]
)
def test_what_is_no_service_is_told_so(text: str) -> None:
    with pytest.raises(UsageError, match=r"join service: expected https://HOST\[:10261\], got "):
        ServiceUrl.parse(text)


# ---- wrong tokens ----------------------------------------------------------------------------------


def test_who_is_wrong_too_often_waits_and_nobody_else_does() -> None:
    tries = Tries()
    for _ in range(TRIES):
        assert tries.wait("10.0.0.1", 0) == 0
        tries.failed("10.0.0.1", 0)
    assert tries.wait("10.0.0.1", 0) == SECONDS
    assert tries.wait("::ffff:10.0.0.1", 10) == pytest.approx(SECONDS - 10)
    assert tries.wait("10.0.0.2", 0) == 0
    assert tries.wait("10.0.0.1", SECONDS) == 0
    tries.failed("10.0.0.1", SECONDS)
    assert tries.wait("10.0.0.1", SECONDS) == SECONDS


def test_of_ipv6_a_whole_64_is_one_source() -> None:
    tries = Tries()
    for number in range(TRIES):
        tries.failed(f"fd00::{number}", 0)
    assert tries.wait("fd00::ffff%eth0", 0) > 0
    assert tries.wait("fd00:0:0:1::1", 0) == 0


def test_however_many_sources_there_are_few_are_remembered() -> None:
    tries = Tries()
    for number in range(MAX_SOURCES + 10):
        tries.failed(f"10.{number >> 16}.{number >> 8 & 255}.{number & 255}", 0)
    assert len(tries) == MAX_SOURCES
