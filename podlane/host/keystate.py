"""Whether the keys on a host are of use to it. Pure: files in, what is wrong with them out.

Owns: the judgement by which `install` has them made anew, or has the host join anew. What is not
there is not judged: the plan sees that by itself.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime

from cryptography import x509

from podlane.errors import PodlaneError
from podlane.host.jointokens import JoinToken, ca_hashes
from podlane.pki import certificates as c
from podlane.pki.authority import BUNDLE_FILE


@dataclass(frozen=True, slots=True)
class KeyState:
    """`faults` are for people. `foreign`: the host belongs to a cluster that is not the token's."""

    faults: tuple[str, ...] = ()
    foreign: bool = False


def judge(found: Mapping[str, bytes], now: datetime, *, token: str = "", ours: bool = True) -> KeyState:
    """`found` are the files below PKI, by name. With a join token: also whether they are its cluster's.

    Not `ours`: given by the operator; how his authorities are ordered is his affair.
    """
    texts = {name: content.decode("ascii", "replace") for name, content in found.items() if name.endswith(".pem")}
    if BUNDLE_FILE not in texts:
        return KeyState()
    bundle_text = texts.pop(BUNDLE_FILE)
    try:
        bundle, hashes = c.read_certificates(bundle_text), ca_hashes(bundle_text)
    except (ValueError, PodlaneError):
        return KeyState((f"{BUNDLE_FILE} cannot be read",))
    if token and JoinToken.parse(token).ca_hash not in hashes:
        return KeyState(("they are of another authority than the token",), foreign=True)
    return KeyState(tuple(_faults(texts, bundle if ours else None, now)))


def _faults(texts: Mapping[str, str], bundle: list[x509.Certificate] | None, now: datetime) -> Iterator[str]:
    for name, text in sorted(texts.items()):
        try:
            leaf, *chain = c.read_certificates(text)
        except ValueError:
            yield f"{name} cannot be read"
            continue
        if leaf.not_valid_after_utc <= now:
            yield f"{name} has expired ({leaf.not_valid_after_utc:%Y-%m-%d})"
        elif bundle is not None and not _is_trusted(leaf, chain, bundle):
            yield f"{name} is by an authority that is not in {BUNDLE_FILE}"


def _is_trusted(leaf: x509.Certificate, chain: list[x509.Certificate], bundle: list[x509.Certificate]) -> bool:
    """Signed by one of the bundle, or by one that such a one has signed (podlane.pki.authority)."""
    crossed = [each for each in chain if any(c.is_signed_by(each, one) for one in bundle)]
    return any(c.is_signed_by(leaf, one) for one in (*bundle, *crossed))
