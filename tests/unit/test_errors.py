"""What error messages say."""

from __future__ import annotations

import pytest

from podlane.errors import ApplyError, PodlaneError

pytestmark = pytest.mark.unit


def test_many_failed_steps_are_counted_and_the_first_are_named() -> None:
    failures: list[tuple[str, Exception]] = [(f"step {n}", PodlaneError("no")) for n in range(5000)]
    assert str(ApplyError(failures[:2])) == "step 0: no; step 1: no"
    assert str(ApplyError(failures)).startswith("step 0: no; ")
    assert str(ApplyError(failures)).endswith("; step 9: no; and 4990 more")
    assert len(ApplyError(failures).failures) == 5000
