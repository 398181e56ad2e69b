"""Direct paths, rounds of probes and the packets themselves: named state in, what is asked and believed out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from ipaddress import IPv4Address, IPv4Interface, IPv4Network, IPv6Address, IPv6Interface, IPv6Network
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from netd.desired import Lease, Underlay
from netd.directprobe import DirectProbe
from netd.icmp import Reply
from netd.paths import ANSWERS, LOSSES, DirectPaths, Path, Timing, candidates
from podlane.api.subnets import Address, LeaseValue, Subnets

pytestmark = pytest.mark.unit

TICK = 0.1
OWN = Subnets(IPv4Network("10.5.1.0/24"), IPv6Network("fd00:5:0:1::/64"))
UNDERLAY = Underlay(
    "eth0",
    1500,
    IPv4Interface("192.168.64.11/24"),
    IPv6Interface("fd00:64::11/64"),
    IPv4Address("192.168.64.11"),
    IPv6Address("fd00:64::11"),
)


def gateway(number: int) -> IPv4Address:
    return IPv4Address("172.16.0.0") + number


def vtep(number: int) -> IPv4Address:
    return IPv4Address("10.5.0.0") + number * 256


def lease(number: int, *, v4: str | None = "", v6: str = "", six: bool = False) -> Lease:
    subnets = Subnets(IPv4Network((vtep(number), 24)), IPv6Network(f"fd00:5:0:{number:x}::/64") if six else None)
    public = IPv4Address(v4 or f"192.168.64.{number + 10}") if v4 is not None else None
    value = LeaseValue.vxlan(public, 1, "02:00:00:00:00:01", public_ipv6=IPv6Address(v6) if v6 else None)
    return Lease(subnets.key, subnets, value, number)


@dataclass
class Segment:
    """A segment in virtual time: `passes` says whether a probe to a peer at a time gets an answer."""

    passes: Callable[[Address, float], bool]
    timing: Timing = field(default_factory=Timing)
    now: float = 0.0
    sent: list[tuple[float, Address]] = field(default_factory=list)
    announced: list[tuple[float, frozenset[Address]]] = field(default_factory=list)
    waiting: list[tuple[float, Path]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.paths = DirectPaths(self.timing)

    def peers(self, *numbers: int) -> Segment:
        self.paths.replace({gateway(number): vtep(number) for number in numbers}, self.now)
        return self

    def run(self, seconds: float) -> Segment:
        end = self.now + seconds
        while self.now < end:
            for deadline, path in [each for each in self.waiting if each[0] <= self.now]:
                self.waiting.remove((deadline, path))
                self.paths.lost(path, self.now)
            for path in self.paths.due(self.now):
                self.sent.append((self.now, path.gateway))
                if self.passes(path.gateway, self.now):
                    self.paths.answered(path, self.now)
                else:
                    self.waiting.append((self.now + self.timing.timeout, path))
            if self.paths.announce(self.now):
                self.announced.append((self.now, self.paths.direct))
            self.now = round(self.now + TICK, 6)
        return self

    def pauses(self, since: float = 0.0) -> list[float]:
        times = [at for at, _ in self.sent if at >= since]
        return [round(later - at, 1) for at, later in pairwise(times)]


def passing(_peer: Address, _now: float) -> bool:
    return True


def broken(peer: Address, since: float) -> Callable[[Address, float], bool]:
    return lambda asked, now: asked != peer or now < since


def dropping(_peer: Address, _now: float) -> bool:
    return False


# ---- when a path is direct -----------------------------------------------------------------------


def test_three_answers_make_a_path_direct_and_then_it_is_asked_every_second() -> None:
    segment = Segment(passing).peers(1).run(10)
    assert [at for at, _ in segment.sent[:3]] == [0.0, 1.0, 2.0]
    assert segment.announced == [(2.0, frozenset({gateway(1)}))]
    assert set(segment.pauses()) == {1.0}


def test_two_answers_and_a_loss_start_again() -> None:
    answers = iter([True, True, False, True, True])
    segment = Segment(lambda _peer, _now: next(answers, False)).peers(1).run(30)
    assert segment.announced == []


def test_a_path_that_never_answers_is_asked_ever_less_but_still_asked() -> None:
    segment = Segment(dropping).peers(1).run(400)
    assert segment.announced == []
    assert segment.pauses() == [10.5, 20.5, 40.5, 60.5, 60.5, 60.5, 60.5, 60.5]


@pytest.mark.parametrize("peers", [1, 300])
def test_a_direct_path_that_breaks_is_given_up_within_three_seconds(peers: int) -> None:
    for moment in (20.0, 20.3, 20.7, 20.9):  # at any moment between two probes
        segment = Segment(broken(gateway(1), moment)).peers(*range(1, peers + 1)).run(20)
        assert len(segment.paths.direct) == peers
        segment.run(moment + 3 - 20)
        assert segment.paths.direct == {gateway(number) for number in range(2, peers + 1)}


def test_one_or_two_losses_do_not_end_a_direct_path() -> None:
    losses = {20.0, 20.5, 30.0}
    segment = Segment(lambda _peer, now: now not in losses).peers(1).run(60)
    assert losses <= {at for at, _ in segment.sent}
    assert len(segment.announced) == 1


def test_a_path_comes_back() -> None:
    segment = Segment(lambda _peer, now: not 100 <= now < 130).peers(1).run(200)
    assert [(len(direct), at < 103 or at > 130) for at, direct in segment.announced] == [
        (1, True),
        (0, True),
        (1, True),
    ]


def test_a_path_that_fails_soon_after_each_return_is_tried_ever_less() -> None:
    """As where going direct is itself what breaks it: each attempt costs pods a few packets."""
    segment = Segment(passing)
    segment.passes = lambda _peer, _now: not segment.paths.direct
    segment.peers(1).run(3000)
    returns = [at for at, direct in segment.announced if direct]
    waits = [round((later - at) / 10) for at, later in pairwise(returns)]
    assert waits[:7] == sorted(waits[:7])
    assert len(returns) <= 10


def test_a_path_that_was_stable_is_tried_again_soon() -> None:
    outages = [(100, 105), (110, 112), (300, 305)]
    segment = Segment(lambda _peer, now: not any(start <= now < end for start, end in outages)).peers(1).run(400)
    back = [at for at, direct in segment.announced if direct]
    assert back[-1] < 325


# ---- many paths ----------------------------------------------------------------------------------


def test_a_thousand_direct_paths_share_the_rate() -> None:
    segment = Segment(passing).peers(*range(1000)).run(60)
    assert len(segment.paths.direct) == 1000
    before = len(segment.sent)
    segment.run(100)
    assert len(segment.sent) - before <= 100 * segment.timing.rate * 1.05


@pytest.mark.parametrize("passes", [passing, dropping])
def test_paths_that_do_not_answer_are_tried_a_few_at_a_time(passes: Callable[[Address, float], bool]) -> None:
    segment = Segment(passes).peers(*range(2000)).run(30)
    first = list(dict.fromkeys(peer for _, peer in segment.sent))
    assert len(first) <= 30 * segment.timing.tries * 1.05
    segment.run(60)
    assert {peer for _, peer in segment.sent} == {gateway(number) for number in range(2000)}
    tried = [at for at, _ in segment.sent]
    if passes is dropping:
        assert all(sum(at <= each < at + 1 for each in tried) <= 60 for at in range(90))


def test_when_one_of_many_breaks_the_others_are_asked_at_once() -> None:
    """With a thousand peers each one's turn is seconds away; what drops pod packets drops all of them."""
    segment = Segment(lambda _peer, now: now < 60).peers(*range(1000)).run(64)
    assert segment.paths.direct == frozenset()


def test_gains_are_announced_together_and_losses_soon() -> None:
    segment = Segment(lambda _peer, now: now < 30).peers(*range(200)).run(40)
    gains = [at for at, direct in segment.announced if at < 30]
    losses = [at for at, direct in segment.announced if at >= 30]
    assert min(later - at for at, later in pairwise(gains)) >= 1
    assert len(losses) <= 10


def test_only_the_peer_itself_answers_for_its_path_and_what_cannot_be_sent_is_lost() -> None:
    complaints: list[str] = []
    probe = DirectProbe(Timing(), 0xABCD, lambda action, _error: complaints.append(action))
    probe.replace(OWN, {gateway(1): vtep(1)}, 0)
    now = 0.0
    for sequence, source in enumerate([vtep(2), vtep(1), vtep(1), vtep(1)]):
        assert probe.send("nosuch0", now)
        probe.answered(Reply(source.packed, sequence + 1, b""), now)  # not what was asked
        probe.answered(Reply(source.packed, sequence, b""), now)
        assert probe.paths.announce(now) == (sequence == 3)
        probe.expire("nosuch0", now + 1)
        now += 12
    assert probe.paths.direct == {gateway(1)}
    assert set(complaints) == {"send a probe without encapsulation", "resolve neighbours on nosuch0"}


# ---- other candidates ----------------------------------------------------------------------------


def test_candidates_that_stay_keep_what_is_known_and_others_begin_anew() -> None:
    segment = Segment(passing).peers(1, 2, 3).run(10)
    assert segment.paths.direct == {gateway(1), gateway(2), gateway(3)}
    asked = len(segment.sent)
    segment.paths.replace({gateway(1): vtep(1), gateway(2): vtep(9), gateway(4): vtep(4)}, segment.now)
    segment.run(2 * TICK)
    assert segment.paths.direct == {gateway(1)}
    assert {peer for _, peer in segment.sent[asked:]} >= {gateway(2), gateway(4)}
    segment.run(10)
    assert segment.paths.direct == {gateway(1), gateway(2), gateway(4)}
    assert gateway(3) not in {peer for at, peer in segment.sent if at > 10}


def test_an_answer_of_a_candidate_that_has_left_counts_for_nothing() -> None:
    paths = DirectPaths()
    paths.replace({gateway(1): vtep(1)}, 0)
    for now in range(ANSWERS):
        (path,) = paths.due(now)
        if now < ANSWERS - 1:
            paths.answered(path, now)
    paths.replace({}, 3)
    paths.answered(path, 3)
    assert not paths.announce(100)
    assert paths.due(1000) == []


def test_candidates_are_on_the_own_segment_and_have_the_address_to_themselves() -> None:
    peers = [
        lease(1, six=True),  # this host's own
        lease(2),
        lease(3, v4="192.168.65.3"),  # behind a router
        lease(4, v4=None, v6="fd00:64::4", six=True),
        lease(5, v6="fd00:65::5", six=True),
        lease(6, v4="192.168.64.77"),
        lease(7, v4="192.168.64.77"),  # claims the same address
        lease(8, v4="192.168.64.11"),  # claims ours
        lease(9, v6="fd00:64::9"),  # no IPv6 pods there
    ]
    four, six = IPv4Address, IPv6Address
    assert candidates(OWN, peers, UNDERLAY) == {
        four("192.168.64.12"): vtep(2),
        six("fd00:64::4"): six("fd00:5:0:4::"),
        four("192.168.64.15"): vtep(5),
        four("192.168.64.19"): vtep(9),
    }
    assert candidates(Subnets(OWN.v4), peers, UNDERLAY).keys() == {four(f"192.168.64.{n}") for n in (12, 15, 19)}
    assert candidates(OWN, peers, replace(UNDERLAY, v4=None)).keys() == {six("fd00:64::4")}


# ---- any course ----------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(st.lists(st.tuples(st.booleans(), st.floats(0, 100)), max_size=60))
def test_direct_is_exactly_what_the_last_answers_and_losses_say(course: list[tuple[bool, float]]) -> None:
    """Whatever happens: direct from three answers in a row until three losses in a row, and always asked again."""
    paths, now = DirectPaths(), 0.0
    paths.replace({gateway(1): vtep(1)}, now)
    believed, streak, last = False, 0, False
    for answered, late in course:
        now = max(now, paths.next_due()) + late
        (path,) = paths.due(now)
        (paths.answered if answered else paths.lost)(path, now)
        streak = streak + 1 if answered == last else 1
        last = answered
        if streak >= (ANSWERS if answered else LOSSES):
            believed = answered
        paths.announce(now + 1)
        assert paths.direct == ({gateway(1)} if believed else frozenset())
        assert now <= paths.next_due() <= now + Timing().longest_hold
