"""pytest plugin: how the tests are spread over the workers of pytest-xdist (`-n`).

Most of them wait, for a process to start, a lease to run out, a packet, so that
several run side by side on few cores. `./appliance test` loads this
(`-p tests.parallel`) where it runs whole levels. Invariant: tests that share
what is made once stay together, in one worker and in their order. The longest
pieces begin, so that no worker is left alone with one in the end.
"""

from __future__ import annotations

from typing import Any

import pytest
from xdist.scheduler.loadscope import LoadScopeScheduling

ORDER = ("tests/e2e/", "tests/kernel/", "tests/contract/", "tests/unit/")

LONG = ("test_a_minute_and_a_half_of_upgrade_kill_and_outage_loses_no_packet",)
"""Tests that take longer than any other of their level by far."""


def piece(nodeid: str) -> str:
    """What goes to one worker as a whole: the tests of one lab, a file, or a single kernel test.

    A kernel test makes all its namespaces and daemons itself. Files of the other
    levels have what is made once for all their tests.
    """
    if nodeid.startswith("tests/e2e/"):
        return "tests/e2e/"
    if nodeid.startswith("tests/kernel/"):
        return nodeid
    return nodeid.partition("::")[0]


def turn(name: str) -> tuple[int, bool]:
    """Sorts pieces: which begin."""
    level = next((number for number, folder in enumerate(ORDER) if name.startswith(folder)), len(ORDER))
    return level, not name.partition("[")[0].endswith(LONG)


class Spread(LoadScopeScheduling):
    """Hands out pieces in the order of their turn."""

    def _split_scope(self, nodeid: str) -> str:
        return piece(nodeid)

    def _assign_work_unit(self, node: Any) -> None:
        self.workqueue.move_to_end(min(self.workqueue, key=turn), last=False)  # the first of equals
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Spread:
    return Spread(config, log)


class Told:
    """Names a failed test when it fails, and not only in the end: with many side by side nobody sees which it was."""

    def __init__(self, config: pytest.Config) -> None:
        self._plugins = config.pluginmanager  # the terminal's is not there yet

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            why = crash.message if crash is not None else str(report.longrepr)
            terminal: pytest.TerminalReporter = self._plugins.getplugin("terminalreporter")
            terminal.write_line(f" {report.nodeid} ({report.when}): {(why.splitlines() or [''])[0][:300]}")


def pytest_configure(config: pytest.Config) -> None:
    if config.getoption("numprocesses") and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Told(config))
