"""The list of revoked certificates as such: whose it is, and what the authority remembers to revoke."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from podlane.errors import PodlaneError
from podlane.pki import certificates as c
from podlane.pki import files, profile, revocations
from podlane.pki.authority import Authority

pytestmark = pytest.mark.unit

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ALICE = profile.operator("alice")


def issue(authority: Authority, now: datetime = NOW, holder: profile.Profile = ALICE, days: int = 365) -> int:
    name = files.file_name(holder.common_name)
    files.issue_into(authority.folder / "out", name, authority, holder, now=now, days=days)
    return files.read(authority.folder / "out" / f"{name}.pem").serial_number


def test_a_list_says_what_was_revoked_to_who_trusts_its_authority(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "pki", now=NOW)
    longest = 2**159 - 1
    text = authority.sign_list({7: NOW, longest: NOW}, number=3, now=NOW)
    assert revocations.checked(text, authority.trusted, NOW) == revocations.RevocationList(3, frozenset({7, longest}))
    assert revocations.read(authority.sign_list({}, number=4, now=NOW)).serials == frozenset()
    years_later = NOW + timedelta(days=4000)
    assert revocations.checked(text, authority.trusted, years_later).number == 3, "it holds until there is a newer one"


def test_nobody_else_can_make_a_list(tmp_path: Path) -> None:
    authority, foreign = (Authority.create(tmp_path / name, now=NOW) for name in ("pki", "foreign"))
    text = foreign.sign_list({7: NOW}, number=3, now=NOW)
    with pytest.raises(PodlaneError, match=f"signed by {foreign.name}, no authority that is trusted"):
        revocations.checked(text, authority.trusted, NOW)
    # its own certificate behind it is nobody's word, nor is a leaf of ours
    for behind in (foreign.bundle, authority.sign(c.new_request(c.new_key(), "x"), ALICE, now=NOW)):
        with pytest.raises(PodlaneError, match="no authority that is trusted"):
            revocations.checked(text + behind, authority.trusted, NOW)
    with pytest.raises(PodlaneError, match="read list of revoked certificates"):
        revocations.checked("-----BEGIN X509 CRL-----\nAAAA\n-----END X509 CRL-----\n", authority.trusted, NOW)


def test_a_list_by_a_new_authority_counts_with_the_old_bundle_too(tmp_path: Path) -> None:
    old = Authority.create(tmp_path / "pki", now=NOW)
    new = old.succeeded(now=NOW)
    text = new.sign_list({7: NOW}, number=4, now=NOW)
    for trusted in (old.trusted, new.trusted, new.alone().trusted):
        assert revocations.checked(text, trusted, NOW).serials == {7}
    assert text.startswith("-----BEGIN X509 CRL-----"), "etcd reads the first block"


def test_all_certificates_of_a_name_are_remembered_while_they_are_good(tmp_path: Path) -> None:
    authority = Authority.create(tmp_path / "pki", now=NOW)
    short = issue(authority, days=10)
    first = issue(authority)
    last = issue(authority, NOW + timedelta(days=20))
    bob = issue(authority, holder=profile.operator("bob"))
    remembered = {name: [each.serial_number for each in found] for name, found in authority.all_issued().items()}
    assert remembered == {"alice": [last, first], "bob": [bob]}, "that of ten days has expired"
    assert short not in remembered["alice"]
    assert authority.issued()["alice"].serial_number == last

    authority.forget_revoked({last, bob})
    assert {name: each.serial_number for name, each in authority.issued().items()} == {"alice": first}
