"""What `podlane pki rotate` does next: from what the files say to the steps."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from podlane.pki.rotation import Leaf, Plan, State, plan, problem

pytestmark = pytest.mark.unit

NOW = datetime(2026, 11, 29, tzinfo=UTC)
DAY = timedelta(days=1)


def leaf(name: str, signer: str = "old", *, file: str = "", days: int = 200) -> Leaf:
    return Leaf(name, signer, NOW + days * DAY, file)


def state(*leaves: Leaf, signer: str = "old", before: str = "", published: bool = True) -> State:
    return State(signer, before, published, leaves)


def names(waiting: Plan) -> list[str]:
    return [each.common_name for each in waiting.waits_for]


ETCD, FAR = leaf("etcd@s1", file="etcd"), leaf("agent@n1")
NEW_ETCD, NEW_FAR = replace(ETCD, signer="new"), replace(FAR, signer="new")


def test_without_authority_every_certificate_here_is_renewed() -> None:
    assert str(plan(state(ETCD, leaf("root", file="root"), FAR), NOW)) == "renew etcd\nrenew root"


def test_what_others_have_signed_is_left_alone() -> None:
    done = plan(state(ETCD, leaf("web", "", file="web")), NOW)
    assert str(done) == "renew etcd"
    assert done.foreign == ("web",)


def test_the_beginning() -> None:
    assert str(plan(state(ETCD, FAR), NOW, authority=True)) == (
        "make a new authority, cross-signed by the one before\nrenew etcd"
    )


def test_a_beginning_that_was_interrupted_goes_on() -> None:
    interrupted = state(ETCD, NEW_FAR, signer="new", before="old", published=False)
    assert str(plan(interrupted, NOW, authority=True)) == "write ca.pem and ca.crt anew\nrenew etcd"
    assert not plan(interrupted, NOW, authority=True, force=True).end  # it would lock this host out


def test_the_end_waits_for_everybody_with_a_certificate_by_the_old_one() -> None:
    under_way = state(NEW_ETCD, FAR, leaf("netd@n1"), leaf("gone", days=-1), signer="new", before="old")
    waiting = plan(under_way, NOW, authority=True)
    assert str(waiting) == ""
    assert names(waiting) == ["agent@n1", "netd@n1"]
    assert str(plan(under_way, NOW, authority=True, force=True)) == "trust the authority before no longer"


def test_the_end() -> None:
    assert str(plan(state(NEW_ETCD, NEW_FAR, signer="new", before="old"), NOW, authority=True)) == (
        "trust the authority before no longer"
    )


def test_an_end_that_was_interrupted_is_not_followed_by_a_beginning() -> None:
    interrupted = state(NEW_ETCD, signer="new", published=False)
    assert str(plan(interrupted, NOW, authority=True)) == "write ca.pem and ca.crt anew"


@pytest.mark.parametrize(
    ("days", "text"),
    [(31, ""), (30, ""), (29, "expires in 29 days"), (0, "expired 0 days ago"), (-3, "expired 3 days ago")],
)
def test_what_is_said_of_an_end(days: int, text: str) -> None:
    assert problem(NOW + days * DAY, NOW) == text
