"""`podlane pki list`: whose certificates there are, signed by whom, until when.

Owns: the columns. On a server with the authority's key a row for all that it has
signed and for what is revoked, elsewhere for what is on the host.
"""

from __future__ import annotations

from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from podlane.cli.command import Command, pass_session, warn
from podlane.cli.options import no_headers_option, output_option
from podlane.cli.pki import folder_option
from podlane.cli.session import Session

if TYPE_CHECKING:
    from podlane.pki.holdings import Holding
    from podlane.store.revocations import Revoked

_COLUMNS = ["NAME", "ORGANIZATION", "USE", "SIGNED BY", "EXPIRES", "FILE"]
_PATIENCE = 3.0
"""Seconds that etcd has to answer: the rest of the list is on files."""
_NOT_TRUSTED = "somebody not in ca.pem"


@click.command("list", cls=Command)
@folder_option
@output_option("table", "json", default="table")
@no_headers_option
@pass_session
def list_(session: Session, /, *, folder: Path, output: str, no_headers: bool) -> None:
    """List certificates. What ends within 30 days is warned of. Where the authority's key is, etcd is asked what is
    revoked.
    """
    from podlane.pki.authority import KEY_FILE
    from podlane.runtime.text import table

    now = session.now()
    authorities, certificates = _found(folder)
    revoked = _revoked(session) if (folder / KEY_FILE).exists() else {}
    certificates = [each for each in certificates if each.certificate.serial_number not in revoked or each.file]
    if output == "json":
        from podlane.cli.output import to_json

        told = {"authorities": authorities, "certificates": certificates}
        lists = {kind: [_json(each, now) for each in found] for kind, found in told.items()}
        click.echo(to_json({**lists, "revoked": [_json_revoked(*each) for each in revoked.items()]}))
    else:
        rows = [_row(each, now) for each in (*authorities, *certificates)]
        rows += [[each.name or "?", "-", "-", "-", f"REVOKED {each.since:%Y-%m-%d}", "-"] for each in revoked.values()]
        click.echo(table(rows if no_headers else [_COLUMNS, *rows]))
    warn([text for each in (*authorities, *certificates) if (text := _warning(each, now))])


def _found(folder: Path) -> tuple[list[Holding], list[Holding]]:
    """The authorities that are trusted, and what they have signed, as far as it is known here."""
    from podlane.errors import NotFound
    from podlane.pki import certificates as c
    from podlane.pki import holdings
    from podlane.pki.authority import BUNDLE_FILE, Authority

    try:
        authority = Authority.load(folder)
    except NotFound:
        authority = None
    trusted = list(authority.trusted) if authority else holdings.trusted_here(folder)
    here = holdings.own(folder, trusted)
    given = holdings.given(authority, here) if authority else []
    authorities = [holdings.Holding(each, c.common_name(each.subject), BUNDLE_FILE) for each in trusted]
    return authorities, [*here, *given]


def _revoked(session: Session) -> dict[int, Revoked]:
    """By serial number, in the order of names and times."""
    from podlane.errors import PodlaneError
    from podlane.store.revocations import read_revoked

    try:
        found = read_revoked(session.store, timeout=_PATIENCE)
    except PodlaneError as error:
        warn([f"what is revoked is not known: {error}"])
        return {}
    return dict(sorted(found.items(), key=lambda each: (each[1].name, each[1].since)))


def _json_revoked(serial: int, revoked: Revoked) -> dict[str, str]:
    form = "%Y-%m-%dT%H:%M:%SZ"
    return {
        "name": revoked.name,
        "serial": f"{serial:x}",
        "revoked": f"{revoked.since:{form}}",
        "expires": f"{revoked.ends:{form}}",
    }


def _row(holding: Holding, now: datetime) -> list[str]:
    told = _json(holding, now)
    days = told["daysLeft"]
    expires = f"{told['expires'][:10]} ({days} days)" if days >= 0 else f"{told['expires'][:10]} (expired)"
    use = ",".join(told["uses"])
    return [told["name"], told["organization"], use, holding.signer or _NOT_TRUSTED, expires, told["file"] or "-"]


def _json(holding: Holding, now: datetime) -> dict[str, Any]:
    from podlane.pki import certificates as c

    certificate = holding.certificate
    return {
        "name": holding.common_name,
        "organization": c.organization(certificate.subject),
        "uses": c.uses(certificate),
        "signedBy": holding.signer,
        "expires": f"{certificate.not_valid_after_utc:%Y-%m-%dT%H:%M:%SZ}",
        "daysLeft": (certificate.not_valid_after_utc - now).days,
        "fingerprint": c.fingerprint(certificate),
        "file": _file_name(holding.file),
    }


def _file_name(file: str) -> str:
    return file if not file or file.endswith(".pem") else f"{file}.pem"


def _warning(holding: Holding, now: datetime) -> str:
    from podlane.pki.rotation import problem

    text = problem(holding.certificate.not_valid_after_utc, now)
    return f"{holding.common_name}: {text}" if text else ""
