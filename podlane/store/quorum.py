"""Whether etcd outlives a change of its members.

Owns: what is looked at (Survey), and who may be added, removed or made to wait, and
in which order. Pure. Invariant: nothing is allowed that leaves fewer members
answering than the quorum of those that then vote (raft, section 4), for a
cluster without a quorum can only be restored from a snapshot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from podlane.errors import NotFound, PodlaneError
from podlane.store.adminwire import Member, MemberStatus

_ALARM = re.compile(r"memberID:(\d+) alarm:(\w+)", re.ASCII)


@dataclass(frozen=True, slots=True)
class Surveyed:
    """A member and what it answered at `endpoint`, after `latency` seconds; without a status `problem` says why."""

    member: Member
    endpoint: str = ""
    status: MemberStatus | None = None
    latency: float = 0.0
    problem: str = ""

    @property
    def name(self) -> str:
        return str(self.member)

    @property
    def votes(self) -> bool:
        return not self.member.learner

    @property
    def started(self) -> bool:
        return bool(self.member.name)

    @property
    def leads(self) -> bool:
        return self.status is not None and self.status.leader == self.status.member

    @property
    def healthy(self) -> bool:
        return self.status is not None and bool(self.status.leader)

    @property
    def alarms(self) -> tuple[str, ...]:
        """Its own; each member tells those of all."""
        found = (match for text in (self.status.errors if self.status else ()) for match in _ALARM.finditer(text))
        return tuple(match[2] for match in found if int(match[1]) == self.member.id)

    @property
    def complaint(self) -> str:
        """What is wrong with it, "" if nothing."""
        if self.status is None:
            return self.problem
        return "no leader" if not self.status.leader else ", ".join(self.alarms)


@dataclass(frozen=True, slots=True)
class Survey:
    """All members, each asked at about the same time."""

    members: tuple[Surveyed, ...]

    @property
    def leader(self) -> Surveyed | None:
        return next((each for each in self.members if each.leads), None)

    @property
    def behind(self) -> dict[int, int]:
        """Entries by member id that it has yet to apply, as far as can be told."""
        newest = max((each.status.index for each in self.members if each.status), default=0)
        return {each.member.id: max(0, newest - each.status.applied) for each in self.members if each.status}

    def find(self, name: str) -> Surveyed:
        """By name or by id in hex. Raises NotFound."""
        for each in self.members:
            if name and name in (each.member.name, f"{each.member.id:x}"):
                return each
        known = ", ".join(f"{each.name} ({each.member.id:x})" if each.started else each.name for each in self.members)
        raise NotFound(f'find member "{name}": there are {known}')


def quorum(voters: int) -> int:
    return voters // 2 + 1


def check_addition(survey: Survey, name: str, peer_urls: Sequence[str]) -> Surveyed | None:
    """Whether a member may be added. One with these URLs that was added before is returned. Raises PodlaneError."""
    _check_leader(survey, f"add member {name}")
    for each in survey.members:
        if set(each.member.peer_urls) == set(peer_urls):
            if each.started and each.member.name != name:
                raise PodlaneError(f"add member {name}: {each.name} has the peer URL {peer_urls[0]} already")
            return each
        if each.member.name == name:
            urls = ",".join(each.member.peer_urls)
            raise PodlaneError(f"add member {name}: it is there already, at {urls}; remove it first if it is lost")
    for each in survey.members:
        if not each.started:
            where = ",".join(each.member.peer_urls)
            raise PodlaneError(
                f"add member {name}: {each.name} ({where}) was added and has not started; that one first"
            )
        if not each.healthy or each.alarms:
            remedy = f"repair it, or `podlane etcd remove-member {each.name}` if it is lost"
            raise PodlaneError(f"add member {name}: {each.name} is not well ({each.complaint}): {remedy}")
        if not each.votes:
            raise PodlaneError(f"add member {name}: {each.name} is a learner still; that one first")
    return None


def check_removal(survey: Survey, target: Surveyed) -> None:
    """Raises PodlaneError when the rest would have no quorum."""
    _check_leader(survey, f"remove member {target.name}")
    if len(survey.members) == 1:
        raise PodlaneError(f"remove member {target.name}: it is the only one, and the cluster's data with it")
    if not target.votes or not target.started:
        return
    rest = [each for each in survey.members if each.votes and each.member.id != target.member.id]
    well = sum(each.healthy for each in rest)
    if well < quorum(len(rest)):
        ill = ", ".join(f"{each.name} ({each.complaint})" for each in rest if not each.healthy)
        raise PodlaneError(
            f"remove member {target.name}: {well} of the {len(rest)} others answer and {quorum(len(rest))} are needed; "
            f"not well: {ill or 'none of them votes'}"
        )


def check_pause(survey: Survey, target: Surveyed) -> None:
    """Whether a member may answer nothing for a while, though another is not well. Raises PodlaneError.

    One of one or two may, if all are well: then everybody waits for it.
    """
    others = [each for each in survey.members if each.votes and each.member.id != target.member.id]
    well = sum(each.healthy for each in others)
    if target.votes and well < len(others) and well < quorum(len(others) + 1):
        ill = ", ".join(f"{each.name} ({each.complaint})" for each in others if not each.healthy)
        raise PodlaneError(
            f"pause member {target.name}: meanwhile {well} of {len(others) + 1} would answer and "
            f"{quorum(len(others) + 1)} are needed; not well: {ill}"
        )


def _check_leader(survey: Survey, action: str) -> None:
    voters = [each for each in survey.members if each.votes]
    if not any(each.healthy for each in voters):
        lost = ", ".join(f"{each.name} ({each.complaint})" for each in voters if each.status is None)
        raise PodlaneError(
            f"{action}: etcd has no leader, for {quorum(len(voters))} of {len(voters)} members are needed; bring back "
            f"{lost or 'the others'}, or restore a snapshot (podlane etcd restore)"
        )


def one_by_one(survey: Survey) -> tuple[Surveyed, ...]:
    """Those that answer, the leader last: it changes then, if at all, once."""
    return tuple(sorted((each for each in survey.members if each.status), key=lambda each: (each.leads, each.name)))
