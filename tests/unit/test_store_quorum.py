"""Which changes of etcd's members are allowed: states in, a refusal or nothing out."""

from __future__ import annotations

import pytest

from podlane.errors import NotFound, PodlaneError
from podlane.store import quorum
from podlane.store.adminwire import Member, MemberStatus
from podlane.store.quorum import Survey, Surveyed

DOWN = "Connection refused"


def members(*words: str) -> Survey:
    """`s1*` leads, `s2` follows, `s3!` is down, `s4?` has not started, `+` at the end: a learner; `~`: NOSPACE."""
    leads = any(word.startswith("s") and "*" in word for word in words)
    return Survey(tuple(one(number, word, leader=1 if leads else 0) for number, word in enumerate(words, 1)))


def one(number: int, word: str, *, leader: int) -> Surveyed:
    name = word.rstrip("*!?+~")
    member = Member(number, "" if "?" in word else name, (f"https://{name}:2380",), learner="+" in word)
    if "!" in word or "?" in word:
        return Surveyed(member, problem=DOWN if "!" in word else "added, not started yet")
    alarms = (f"memberID:{number} alarm:NOSPACE ",) if "~" in word else ()
    status = MemberStatus(number, 1, "3.4.23", 100, 50, leader, 2, 30, 30 - number, "+" in word, 9, alarms)
    return Surveyed(member, f"https://{name}:2379", status)


def addition(survey: Survey, name: str = "new") -> str:
    try:
        present = quorum.check_addition(survey, name, [f"https://{name}:2380"])
    except PodlaneError as error:
        return str(error)
    return "go on" if present else "add"


def removal(survey: Survey, name: str) -> str:
    try:
        quorum.check_removal(survey, survey.find(name))
    except PodlaneError as error:
        return str(error)
    return "remove"


def pause(survey: Survey, name: str) -> str:
    try:
        quorum.check_pause(survey, survey.find(name))
    except PodlaneError as error:
        return str(error)
    return "pause"


LEADERLESS = "etcd has no leader, for 2 of 3 members are needed; bring back s2 (Connection refused), s3 (Connection "


@pytest.mark.parametrize(
    ("present", "says"),
    [
        (["s1*"], "add"),
        (["s1*", "s2"], "add"),
        (["s1*", "s2!", "s3"], "s2 is not well (Connection refused): repair it, or `podlane etcd remove-member s2`"),
        (["s1*", "s2~", "s3"], "s2 is not well (NOSPACE)"),
        (["s1*", "new?+"], "go on"),
        (["s1*", "other?+"], "2 (https://other:2380) was added and has not started; that one first"),
        (["s1*", "s2+"], "s2 is a learner still"),
        (["s1", "s2!", "s3!"], LEADERLESS),
    ],
)
def test_a_member_is_added_to_a_cluster_that_is_well(present: list[str], says: str) -> None:
    assert says in addition(members(*present))


def test_a_name_and_an_address_are_one_members() -> None:
    survey = members("s1*", "s2")
    assert "s2: it is there already, at https://s2:2380; remove it first if it is lost" in taken(
        survey, "s2", "https://x:1"
    )
    assert "s1 has the peer URL https://s1:2380 already" in taken(survey, "s3", "https://s1:2380")


def taken(survey: Survey, name: str, url: str) -> str:
    with pytest.raises(PodlaneError) as error:
        quorum.check_addition(survey, name, [url])
    return str(error.value)


@pytest.mark.parametrize(
    ("present", "who", "says"),
    [
        (["s1*"], "s1", "it is the only one"),
        (["s1*", "s2"], "s2", "remove"),
        (["s1*", "s2", "s3"], "s1", "remove"),
        (["s1*", "s2", "s3!"], "s3", "remove"),
        (["s1*", "s2", "s3!"], "s2", "1 of the 2 others answer and 2 are needed; not well: s3 (Connection refused)"),
        (["s1*", "s2+"], "s2", "remove"),
        (["s1*", "s2?"], "2", "remove"),
        (["s1*", "s2", "s3!", "s4!", "s5"], "s2", "2 of the 4 others answer and 3 are needed"),
        (["s1", "s2!", "s3!"], "s3", LEADERLESS),
    ],
)
def test_a_removal_leaves_a_quorum(present: list[str], who: str, says: str) -> None:
    assert says in removal(members(*present), who)


@pytest.mark.parametrize(
    ("present", "who", "says"),
    [
        (["s1*"], "s1", "pause"),
        (["s1*", "s2"], "s2", "pause"),
        (["s1*", "s2", "s3"], "s1", "pause"),
        (
            ["s1*", "s2", "s3!"],
            "s2",
            "meanwhile 1 of 3 would answer and 2 are needed; not well: s3 (Connection",
        ),
        (["s1*", "s2+", "s3!"], "s2", "pause"),
        (["s1*", "s2", "s3", "s4", "s5!"], "s2", "pause"),
    ],
)
def test_a_pause_leaves_a_quorum(present: list[str], who: str, says: str) -> None:
    assert says in pause(members(*present), who)


def test_the_leader_pauses_last_and_who_is_away_not_at_all() -> None:
    order = quorum.one_by_one(members("s1*", "s2", "s3!", "s4"))
    assert [each.name for each in order] == ["s2", "s4", "s1"]


def test_how_far_each_is() -> None:
    assert members("s1*", "s2", "s3!").behind == {1: 1, 2: 2}


def test_each_member_has_its_own_alarms_only() -> None:
    full = one(7, "s1*~", leader=7)
    told = one(8, "s2", leader=7)
    assert full.status is not None
    told = Surveyed(told.member, status=full.status)
    assert (full.complaint, told.complaint) == ("NOSPACE", "")


def test_members_are_found_by_name_and_by_id() -> None:
    survey = members("s1*", "s2?")
    assert survey.find("1").name == "s1"
    with pytest.raises(NotFound, match=r'find member "s9": there are s1 \(1\), 2$'):
        survey.find("s9")
