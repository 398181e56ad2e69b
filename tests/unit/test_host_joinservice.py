"""The join service's work, on a store and accounts in memory: what is interrupted, who is too curious."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import pytest

from podlane.errors import PodlaneError
from podlane.host.enrol import read_hosts
from podlane.host.joinmessages import JoinAnswer, JoinRequest
from podlane.host.joinrules import Refused
from podlane.host.joinservice import JoinService
from podlane.host.jointokens import create, listing
from podlane.host.jointries import SECONDS, TRIES
from podlane.pki import certificates as c
from podlane.pki.authority import Authority
from podlane.pki.profile import NODE_DAEMONS
from podlane.runtime.clock import FakeClock
from podlane.store.adminwire import Member
from podlane.store.interface import Compare, Op, Put, TxnResult
from podlane.store.keys import JOIN_TOKENS
from podlane.store.memory import MemoryStore
from tests.contract.netd_hosts import PREFIX, put
from tests.unit.host_accounts import FakeAccounts

pytestmark = pytest.mark.unit

CSRS = {name: c.new_request(c.new_key(), name) for name in NODE_DAEMONS}
OTHER_CSRS = {name: c.new_request(c.new_key(), name) for name in NODE_DAEMONS}


class Etcd(FakeAccounts):
    def members(self) -> tuple[Member, ...]:
        return (
            Member(1, "s1", ("https://10.0.0.1:2380",), ("https://10.0.0.1:2379",)),
            Member(2, "s2", ("https://10.0.0.2:2380",), ("https://10.0.0.2:2379",), learner=True),
        )


class World:
    """Two services of one cluster, as on two servers."""

    def __init__(self, folder: Path) -> None:
        self.clock = FakeClock()
        self.store = MemoryStore(clock=self.clock)
        self.etcd = Etcd()
        put(self.store, f"{PREFIX}/config", '{"Network":"10.5.0.0/16"}')
        if not (folder / "ca.key").exists():
            Authority.create(folder, now=datetime.fromtimestamp(self.clock.now(), UTC))
        self.one, self.other = (JoinService(self.store, self.etcd, folder, clock=self.clock) for _ in range(2))

    def token(self, **wish: object) -> str:
        token, _ = create(self.store, authority_hash="A" * 43, now=datetime.now(UTC), **wish)  # type: ignore[arg-type]
        return str(token)

    def join(self, token: str, name: str = "web1", peer: str = "10.0.0.11", **changes: object) -> JoinAnswer:
        request = JoinRequest(token, "node", name, ("10.0.0.11",), CSRS)
        return self.one.join(msgspec.structs.replace(request, **changes), peer)


def test_a_node_is_told_where_etcd_is_and_not_of_members_that_only_learn(tmp_path: Path) -> None:
    world = World(tmp_path)
    answer = world.join(world.token())
    assert answer.endpoints == ("https://10.0.0.1:2379",)
    assert set(answer.certificates) == set(NODE_DAEMONS)
    assert answer.authority == ""
    assert set(world.etcd.users) == {f"{daemon}@web1" for daemon in NODE_DAEMONS}


def test_wherever_it_is_interrupted_the_same_host_gets_the_rest_and_no_other(tmp_path: Path) -> None:
    whole = World(tmp_path)
    whole.join(whole.token())
    for at in range(1, whole.etcd.calls + 1):
        world = World(tmp_path)
        token = world.token()
        world.etcd.fail_at = at
        with pytest.raises(InterruptedError):
            world.join(token)
        with pytest.raises(Refused, match="there is a node web1 already"):
            world.join(token, csrs=OTHER_CSRS)
        with pytest.raises(Refused, match=r"the token is used up \(by web1\)"):
            world.join(token, "web2", addresses=("10.0.0.12",), csrs=OTHER_CSRS)
        assert set(world.join(token).certificates) == set(NODE_DAEMONS)
        assert (world.etcd.users, set(world.etcd.roles)) == (whole.etcd.users, set(whole.etcd.roles))


def test_a_refusal_costs_no_use_and_writes_nothing(tmp_path: Path) -> None:
    world = World(tmp_path)
    token = world.token()
    before = world.store.list("/").items
    for changes in ({"name": "s1"}, {"addresses": ("10.0.0.1",)}, {"csrs": {}}):
        with pytest.raises(Refused):
            world.join(token, **changes)  # type: ignore[arg-type]
    assert world.store.list("/").items == before
    assert world.etcd.users == {}
    assert listing(world.store)[0].record.used == ()


def test_who_guesses_tokens_waits_also_with_the_right_one_and_nobody_else_does(tmp_path: Path) -> None:
    world = World(tmp_path)
    token = world.token()
    wrong = token[:9] + "A" * 22 + token[31:]
    for guess in (*[wrong] * (TRIES - 1), "no token at all"):
        with pytest.raises(Refused, match="the token is not known here"):
            world.join(guess)
    with pytest.raises(Refused, match=r"too many wrong tokens from 10\.0\.0\.11: try again in 30 s") as refused:
        world.join(token)
    assert refused.value.status == 429
    world.clock.advance(SECONDS + 1)
    assert world.join(token).name == "web1"
    assert world.join(world.token(), "web2", "10.0.0.12", addresses=("10.0.0.12",), csrs=OTHER_CSRS).name == "web2"


class Overtaken:
    """A store in which something happens just before the first use of a token is counted."""

    def __init__(self, store: MemoryStore, happens: Callable[[], object]) -> None:
        self._store = store
        self._happens: list[Callable[[], object]] = [happens]

    def __getattr__(self, name: str) -> Any:
        return getattr(self._store, name)

    def txn(self, compare: Sequence[Compare], then: Sequence[Op], otherwise: Sequence[Op] = ()) -> TxnResult:
        if self._happens and any(isinstance(op, Put) and op.key.startswith(JOIN_TOKENS) for op in then):
            self._happens.pop()()
        return self._store.txn(compare, then, otherwise)


@pytest.mark.parametrize("same_token", [True, False])
def test_two_services_give_a_name_once(tmp_path: Path, *, same_token: bool) -> None:
    world = World(tmp_path)
    mine = world.token(uses=2)
    others = mine if same_token else world.token()
    quicker = JoinRequest(others, "node", "web1", ("10.0.0.12",), OTHER_CSRS)
    store = Overtaken(world.store, lambda: world.other.join(quicker, "10.0.0.12"))
    slower = JoinService(store, world.etcd, tmp_path, clock=world.clock)  # type: ignore[arg-type]
    with pytest.raises(PodlaneError, match=r"another host (joins as web1|has taken this name)"):
        slower.join(JoinRequest(mine, "node", "web1", ("10.0.0.11",), CSRS), "10.0.0.11")
    assert read_hosts(world.store).nodes["web1"].addresses == ("10.0.0.12",)
