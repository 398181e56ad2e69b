"""The runner as a script: at these moments these triggers, hence syncs at those moments.

ScriptedClock makes each test one thread in no time; the tests with real
threads at the end are for what a script cannot show.
"""

from __future__ import annotations

import io
import itertools
import threading
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from podlane.errors import PodlaneError
from podlane.runtime import log, metrics
from podlane.runtime.clock import FakeClock, ScriptedClock
from podlane.runtime.runner import NotReady, Runner, Schedule

pytestmark = pytest.mark.unit

NO_RESYNC = 10_000.0


class Play:
    """Runs a runner until `until` and records when its syncs began."""

    def __init__(self, *, until: float, takes: float = 0.0, **options: object) -> None:
        self.clock = ScriptedClock()
        self.stop = threading.Event()
        self.started: list[float] = []
        self.takes = takes
        self.during: Callable[[int], None] = lambda _number: None
        self.runner = Runner(
            self._sync, name="play", clock=self.clock, **{"resync": NO_RESYNC, "eager": False, **options}
        )
        self.clock.at(until, self._end)

    def _end(self) -> None:
        self.stop.set()
        self.runner.trigger()

    def _sync(self) -> None:
        self.started.append(self.clock.monotonic())
        number = len(self.started)
        self.clock.advance(self.takes)
        self.during(number)

    def trigger_at(self, *moments: float) -> Play:
        for moment in moments:
            self.clock.at(moment, self.runner.trigger)
        return self

    def syncs(self) -> list[float]:
        self.runner.run(self.stop)
        return self.started


def fail(*numbers: int, error: Exception | None = None) -> Callable[[int], None]:
    def during(number: int) -> None:
        if number in numbers:
            raise error or PodlaneError("sync world: it is on fire")

    return during


def test_an_eager_runner_syncs_at_once_another_waits_for_a_trigger() -> None:
    assert Play(until=10, eager=True).syncs() == [0]
    assert Play(until=10).syncs() == []
    assert Play(until=10).trigger_at(4).syncs() == [4]


def test_triggers_before_a_sync_are_one() -> None:
    play = Play(until=10)
    for _ in range(100):
        play.runner.trigger()
    assert play.syncs() == [0]


def test_syncs_start_at_least_the_minimum_interval_apart() -> None:
    moments = [0.1 * i for i in range(1, 31)]
    assert Play(until=10, min_interval=1.0).trigger_at(*moments).syncs() == pytest.approx([0.1, 1.1, 2.1, 3.1])


def test_a_trigger_during_a_sync_runs_another() -> None:
    assert Play(until=10, takes=2.0).trigger_at(1, 1.5, 2.5).syncs() == [1, 3]


def test_a_sync_longer_than_the_interval_does_not_delay_the_next() -> None:
    assert Play(until=10, takes=2.0, min_interval=0.5).trigger_at(1, 2).syncs() == [1, 3]


def test_a_sync_that_took_long_is_followed_by_a_rest():
    assert Play(until=20, takes=2.0, rest=1.5).trigger_at(1, 2, 3, 12).syncs() == [1, 6, 12]


def test_resync_counts_from_the_end_of_the_last_good_sync() -> None:
    assert Play(until=10, takes=1.0, resync=3.0, eager=True).syncs() == [0, 4, 8]
    assert Play(until=10, resync=4.0, eager=True).trigger_at(3).syncs() == [0, 3, 7]


def test_the_earliest_delayed_trigger_wins_and_later_ones_are_answered_by_none_other() -> None:
    play = Play(until=100)
    play.runner.trigger_after(20)
    play.runner.trigger_after(5)
    play.runner.trigger_after(50)
    assert play.syncs() == [5]


def test_a_delayed_trigger_survives_a_sync_that_came_before_it_was_due() -> None:
    play = Play(until=100, resync=4.0, eager=True)
    play.clock.at(11, lambda: play.runner.trigger_after(0.5))
    assert play.syncs()[:4] == [0, 4, 8, 11.5]


def test_failures_back_off_by_doubling_up_to_the_longest_pause() -> None:
    play = Play(until=40, eager=True, backoff=(1.0, 8.0))
    play.during = fail(*range(1, 100))
    assert play.syncs() == [0, 1, 3, 7, 15, 23, 31, 39]


def test_success_resets_the_backoff() -> None:
    play = Play(until=20, eager=True, backoff=(1.0, 8.0)).trigger_at(10)
    play.during = fail(1, 2, 4)
    assert play.syncs() == [0, 1, 3, 10, 11]


def test_a_trigger_shortens_the_pause_to_its_first_step_but_not_the_doubling() -> None:
    play = Play(until=100, eager=True, backoff=(1.0, 64.0)).trigger_at(7.1, 7.2, 7.3)
    play.during = fail(*range(1, 100))
    # 0, +1, +2, +4 = 7; triggered in the pause of 8: at 7+1; then +16, +32
    assert play.syncs() == [0, 1, 3, 7, 8, 24, 56]


def test_a_storm_of_triggers_on_a_failing_sync_cannot_spin() -> None:
    play = Play(until=10, backoff=(1.0, 64.0)).trigger_at(*[0.01 * i for i in range(1000)])
    play.during = fail(*range(1, 1000))
    assert len(play.syncs()) == 10


def test_not_ready_is_no_failure_and_a_trigger_ends_it_at_once() -> None:
    play = Play(until=10, eager=True).trigger_at(2.5)
    play.during = fail(1, 2, 3, error=NotReady("sync rules: no complete list of services yet"))
    states: list[str | None] = []
    play.clock.at(2.4, lambda: states.append(play.runner.ready()))
    assert play.syncs() == [0, 1, 2, 2.5]
    assert states == ["sync rules: no complete list of services yet"]
    assert play.runner.ready() is None
    assert play.runner.last_error is None


def test_the_runner_tells_what_happened() -> None:
    play = Play(until=10, eager=True, backoff=(1.0, 8.0)).trigger_at(5)
    play.during = fail(2, 3, error=RuntimeError("unforeseen"))
    assert play.runner.ready() == "no sync yet"
    assert play.runner.synced_once is False
    seen: list[tuple[str | None, str | None]] = []
    play.clock.at(5.5, lambda: seen.append((str(play.runner.last_error), play.runner.ready())))
    before = {r: metrics.value("podlane_sync_total", runner="play", result=r) or 0 for r in ("ok", "error")}
    assert play.syncs() == [0, 5, 6, 8]
    assert seen == [("unforeseen", None)]
    assert metrics.value("podlane_sync_total", runner="play", result="ok") == before["ok"] + 2
    assert metrics.value("podlane_sync_total", runner="play", result="error") == before["error"] + 2
    assert metrics.value("podlane_sync_failures", runner="play") == 0


def test_an_error_that_stays_is_said_once_a_minute_and_at_its_end() -> None:
    target = io.StringIO()
    log.configure(stream=target)
    play = Play(until=100, eager=True, backoff=(1.0, 4.0))
    play.during = fail(*range(1, 22), error=PodlaneError("no answer"))
    syncs = len(play.syncs())
    log.configure()
    said = [line.partition("event=")[2].partition(" runner")[0] for line in target.getvalue().splitlines()]
    assert syncs > 20
    assert said == ['"sync failed"', '"sync failed"', '"sync recovered"']


def test_bad_settings_are_refused() -> None:
    for bad in (
        {"min_interval": -1.0},
        {"rest": -1.0},
        {"resync": 0.0},
        {"backoff": (0.0, 1.0)},
        {"backoff": (2.0, 1.0)},
    ):
        settings = {"min_interval": 0.0, "resync": 1.0, "backoff": (0.1, 1.0), **bad}
        with pytest.raises(ValueError, match="make schedule"):
            Schedule(**settings)  # type: ignore[arg-type]


@given(
    triggers=st.lists(st.floats(0, 50), max_size=30),
    failing=st.sets(st.integers(1, 60), max_size=20),
    interval=st.floats(0, 3),
    takes=st.floats(0, 2),
)
def test_whatever_happens_every_trigger_is_followed_by_a_whole_sync(
    triggers: list[float], failing: set[int], interval: float, takes: float
) -> None:
    play = Play(until=1000, takes=takes, min_interval=interval, backoff=(0.5, 4.0)).trigger_at(*triggers)
    play.during = fail(*failing)
    syncs = play.syncs()
    assert all(later - earlier >= interval - 1e-6 for earlier, later in itertools.pairwise(syncs))
    assert all(later - earlier >= takes - 1e-6 for earlier, later in itertools.pairwise(syncs))
    for moment in triggers:
        assert any(start >= moment - 1e-6 for start in syncs)
    if syncs:
        assert len(syncs) not in failing or syncs[-1] > 990, "a failed sync was not retried"
    assert len(syncs) <= len(triggers) + len(failing)


def test_stop_ends_a_waiting_runner_and_lets_a_running_sync_finish() -> None:
    entered, leave, finished = threading.Event(), threading.Event(), threading.Event()

    def sync() -> None:
        entered.set()
        leave.wait(10)
        finished.set()

    stop = threading.Event()
    runner = Runner(sync, name="threads", clock=FakeClock())
    thread = threading.Thread(target=runner.run, args=(stop,))
    thread.start()
    assert entered.wait(10)
    stop.set()
    assert thread.is_alive()
    leave.set()
    thread.join(10)
    assert not thread.is_alive()
    assert finished.is_set()

    idle = Runner(sync, name="idle", clock=FakeClock(), eager=False)
    stop = threading.Event()
    thread = threading.Thread(target=idle.run, args=(stop,))
    thread.start()
    stop.set()
    thread.join(10)
    assert not thread.is_alive()


def test_triggers_from_many_threads_are_never_lost() -> None:
    """Each thread bumps a counter, then triggers; the last sync must have seen every bump."""
    lock, stop, caught_up = threading.Lock(), threading.Event(), threading.Event()
    wanted, seen = 0, 0
    total = 8 * 200

    def sync() -> None:
        nonlocal seen
        with lock:
            seen = wanted
        if seen == total:
            caught_up.set()

    runner = Runner(sync, name="many", resync=NO_RESYNC)

    def bump() -> None:
        nonlocal wanted
        for _ in range(200):
            with lock:
                wanted += 1
            runner.trigger()

    loop = threading.Thread(target=runner.run, args=(stop,))
    loop.start()
    threads = [threading.Thread(target=bump) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert caught_up.wait(30), f"the last sync saw {seen} of {total}"
    stop.set()
    loop.join(10)
