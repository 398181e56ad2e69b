"""The fakes of the clock keep their promises, since every other test of time leans on them."""

from __future__ import annotations

import threading

import pytest

from podlane.runtime.clock import FakeClock, ScriptedClock, SystemClock

pytestmark = pytest.mark.unit


def test_system_clock_waits_for_the_event_or_the_deadline() -> None:
    clock, event = SystemClock(), threading.Event()
    before = clock.monotonic()
    assert clock.wait(event, 0.01) is False
    assert clock.monotonic() - before >= 0.01
    event.set()
    assert clock.wait(event, 60.0) is True
    assert clock.wait(event, -1.0) is True


def test_fake_time_stands_still_until_advanced() -> None:
    clock = FakeClock(start=1000.0)
    assert (clock.now(), clock.monotonic()) == (1000.0, 0.0)
    clock.advance(2.5)
    assert (clock.now(), clock.monotonic()) == (1002.5, 2.5)
    with pytest.raises(ValueError, match="expected seconds ≥ 0"):
        clock.advance(-1)


@pytest.mark.parametrize("end", ["time", "event"])
def test_fake_wait_ends_by_time_or_by_event(end: str) -> None:
    clock, event = FakeClock(), threading.Event()
    results: list[bool] = []
    thread = threading.Thread(target=lambda: results.append(clock.wait(event, 10.0)))
    thread.start()
    clock.await_sleepers(1)
    clock.advance(9.999)
    assert results == []
    if end == "time":
        clock.advance(0.001)
    else:
        event.set()
    thread.join(10)
    assert results == [end == "event"]
    assert clock.sleepers == 0


def test_await_sleepers_gives_up() -> None:
    with pytest.raises(TimeoutError, match="only 0"):
        FakeClock().await_sleepers(1, timeout=0.01)


def test_scripted_wait_runs_what_was_scheduled_on_the_way() -> None:
    clock, event, seen = ScriptedClock(), threading.Event(), list[tuple[str, float]]()
    clock.at(7, lambda: seen.append(("late", clock.monotonic())))
    clock.at(3, lambda: seen.append(("first", clock.monotonic())))
    clock.at(3, lambda: seen.append(("second", clock.monotonic())))
    clock.at(5, event.set)
    assert clock.wait(event, 4.0) is False
    assert clock.monotonic() == 4.0
    assert clock.wait(event, 100.0) is True
    assert clock.monotonic() == 5.0
    assert seen == [("first", 3.0), ("second", 3.0)]
    clock.advance(10)
    assert seen[-1] == ("late", 7.0)
    assert clock.monotonic() == 15.0
