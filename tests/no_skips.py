"""pytest plugin: a skipped contract, kernel or e2e test is a failure.

Such a test skips where its machine lacks something. That is a help on a
laptop, and a hole where the whole suite must run: there `./appliance test`
loads this (`-p tests.no_skips`).
"""

from __future__ import annotations

from collections.abc import Generator

import pytest

LEVELS = ("tests/contract/", "tests/kernel/", "tests/e2e/")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport() -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    if not hasattr(report, "wasxfail"):
        _refuse(report)
    return report


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report() -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    _refuse(report)
    return report


def _refuse(report: pytest.TestReport | pytest.CollectReport) -> None:
    if report.skipped and report.nodeid.startswith(LEVELS):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else str(report.longrepr)
        report.outcome = "failed"
        report.longrepr = f"skipped, which is not allowed here: {reason}"
