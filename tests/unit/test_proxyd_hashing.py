"""Tables that follow from the targets alone: who moves when one goes, and how equal the shares are."""

from __future__ import annotations

import random
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from proxyd_objects import target

from proxyd.hashing import jhash, maglev, rendezvous, slot_of, table_size

pytestmark = pytest.mark.unit

SLOTS = 1021
SETS = 40


def pods(rng: random.Random, count: int) -> tuple[bytes, ...]:
    return tuple(sorted(target(f"10.5.{n >> 8}.{n & 255}:8080") for n in rng.sample(range(65536), count)))


def moved(before: tuple[bytes, ...], after: tuple[bytes, ...], gone: bytes) -> int:
    """Slots of those who stay that have another owner now."""
    return sum(was != now for was, now in zip(before, after, strict=True) if was != gone)


@pytest.mark.parametrize(
    ("targets", "size"),
    [(1, 1021), (8, 1021), (9, 8191), (512, 8191), (513, 65521), (4096, 65521)],
)
def test_a_table_has_a_prime_number_of_slots_and_16_a_target(targets, size):
    assert table_size(targets) == size
    assert size >= 15.9 * targets
    assert all(size % divisor for divisor in range(2, int(size**0.5) + 1))


@pytest.mark.parametrize("fill", [rendezvous, maglev])
def test_a_table_is_full_and_the_same_on_every_node(fill):
    targets = pods(random.Random(1), 7)
    table = fill(targets, SLOTS)
    assert len(table) == SLOTS
    assert set(table) == set(targets)
    fill.cache_clear()
    assert fill(targets, SLOTS) == table


@pytest.mark.parametrize("fill", [rendezvous, maglev])
def test_one_target_has_everything(fill):
    (only,) = pods(random.Random(1), 1)
    assert set(fill((only,), SLOTS)) == {only}


def test_rendezvous_moves_the_slots_of_the_one_who_goes_and_no_other():
    rng = random.Random(7)
    for count in (2, 3, 5, 10, 20, 40):
        for _ in range(SETS // 8):
            targets = pods(rng, count)
            gone = rng.choice(targets)
            left = tuple(each for each in targets if each != gone)
            assert moved(rendezvous(targets, SLOTS), rendezvous(left, SLOTS), gone) == 0


def test_rendezvous_shares_are_near_to_equal():
    rng = random.Random(8)
    for count in (2, 5, 10, 20):
        for _ in range(SETS // 8):
            shares = Counter(rendezvous(pods(rng, count), SLOTS))
            mean = SLOTS / count
            # a binomial spread; five standard deviations
            assert max(abs(share - mean) for share in shares.values()) < 5 * (mean * (1 - 1 / count)) ** 0.5


@settings(max_examples=60)
@given(st.integers(1, 64), st.randoms(use_true_random=False))
def test_maglevs_shares_are_within_one_slot_of_each_other(count, rng):
    shares = Counter(maglev(pods(rng, count), SLOTS))
    assert len(shares) == count
    assert max(shares.values()) - min(shares.values()) <= 1


def test_maglev_moves_few_slots_more_than_those_of_the_one_who_goes():
    """Of those who could stay, on average over many sets 4 in 100, and in no set more than 7 in 100."""
    rng = random.Random(9)
    for count in (3, 5, 8, 9, 20, 40):
        slots, parts = table_size(count), []
        for _ in range(SETS * SLOTS // slots):
            targets = pods(rng, count)
            gone = rng.choice(targets)
            before = maglev(targets, slots)
            after = maglev(tuple(each for each in targets if each != gone), slots)
            parts.append(moved(before, after, gone) / (slots - before.count(gone)))
        assert sum(parts) / len(parts) < 0.04, count
        assert max(parts) < 0.07, count


@pytest.mark.parametrize("fill", [rendezvous, maglev])
def test_one_who_comes_takes_about_one_share(fill):
    rng = random.Random(10)
    for count in (4, 9, 19):
        targets = pods(rng, count + 1)
        new = rng.choice(targets)
        before = fill(tuple(each for each in targets if each != new), SLOTS)
        changed = sum(was != now for was, now in zip(before, fill(targets, SLOTS), strict=True))
        assert SLOTS / (count + 1) * 0.5 < changed < SLOTS / (count + 1) * 2.5


def test_a_port_more_or_less_makes_another_target():
    a, b = target("10.5.1.2:80"), target("10.5.1.2:81")
    assert set(rendezvous((a, b), SLOTS)) == {a, b}


# --- the kernel's hash ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("data", "seed", "value"),
    [
        # lookup3.c's self-test: hashlittle() of "" and of "Four score and seven years ago"
        (b"", 0, 0xDEADBEEF),
        (b"", 0xDEADBEEF, 0xBD5B7DDE),
        (b"Four score and seven years ago", 0, 0x17770551),
        (b"Four score and seven years ago", 1, 0xCD628161),
    ],
)
def test_jhash_is_lookup3(data, seed, value):
    assert jhash(data, seed) == value


@given(st.binary(min_size=4, max_size=16), st.integers(1, 65521), st.integers(0, 0xFFFFFFFF))
def test_a_slot_is_one_of_the_tables(client, slots, seed):
    assert 0 <= slot_of(client, slots, seed) < slots


def test_clients_are_spread_over_the_slots():
    found = Counter(slot_of(bytes((10, 5, n >> 8, n & 255)), 8, 0x506F646C) for n in range(8000))
    assert set(found) == set(range(8))
    assert min(found.values()) > 800
