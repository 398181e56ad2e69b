from __future__ import annotations

import pytest

from podlane.runtime import metrics

pytestmark = pytest.mark.unit


def test_asking_twice_gives_the_same_metric() -> None:
    first = metrics.counter("podlane_test_twice_total", "Test.", ["kind"])
    second = metrics.counter("podlane_test_twice_total", "Test.", ["kind"])
    first.labels("a").inc()
    second.labels("a").inc(2)
    assert metrics.value("podlane_test_twice_total", kind="a") == 3
    assert metrics.value("podlane_test_twice_total", kind="b") is None


def test_a_name_cannot_change_its_type() -> None:
    metrics.gauge("podlane_test_type", "Test.")
    with pytest.raises(TypeError, match="podlane_test_type: already a Gauge, not a Counter"):
        metrics.counter("podlane_test_type", "Test.")


def test_histograms_and_the_process_are_shown() -> None:
    metrics.histogram("podlane_test_seconds", "Test.").observe(0.03)
    text = metrics.render().decode()
    assert 'podlane_test_seconds_bucket{le="0.025"} 0.0' in text
    assert 'podlane_test_seconds_bucket{le="0.05"} 1.0' in text
    assert "process_resident_memory_bytes" in text
