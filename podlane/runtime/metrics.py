"""Metrics: Prometheus' types on a registry of our own.

Owns: `REGISTRY`, which is what /metrics shows. Invariant: asking twice for the
same metric gives the same object, so two instances of a class in one process
share it (and so do tests). Not the library's global registry: what another
library registers there is not ours to publish.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import TypeVar

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, ProcessCollector, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

CONTENT_TYPE = CONTENT_TYPE_LATEST
REGISTRY = CollectorRegistry()
ProcessCollector(registry=REGISTRY)

SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Buckets for the duration of one cycle or one call."""

_M = TypeVar("_M", Counter, Gauge, Histogram)
_lock = threading.Lock()
_known: dict[str, Counter | Gauge | Histogram] = {}


def counter(name: str, help_text: str, labels: Sequence[str] = ()) -> Counter:
    """Return the counter of that name (end it in `_total`), made at the first call."""
    return _once(name, Counter, lambda: Counter(name, help_text, labels, registry=REGISTRY))


def gauge(name: str, help_text: str, labels: Sequence[str] = ()) -> Gauge:
    """Return the gauge of that name, made at the first call."""
    return _once(name, Gauge, lambda: Gauge(name, help_text, labels, registry=REGISTRY))


def histogram(
    name: str, help_text: str, labels: Sequence[str] = (), *, buckets: Sequence[float] = SECONDS
) -> Histogram:
    """Return the histogram of that name, made at the first call."""
    return _once(name, Histogram, lambda: Histogram(name, help_text, labels, registry=REGISTRY, buckets=buckets))


def render(registry: CollectorRegistry = REGISTRY) -> bytes:
    """Return everything in Prometheus' text format."""
    return generate_latest(registry)


def value(name: str, **labels: str) -> float | None:
    """Return the present value of one sample by its full name; None if there is none."""
    return REGISTRY.get_sample_value(name, labels)


def _once(name: str, kind: type[_M], make: Callable[[], _M]) -> _M:
    with _lock:
        known = _known.get(name)
        if known is None:
            known = _known[name] = make()
        if not isinstance(known, kind):
            raise TypeError(f"register metric {name}: already a {type(known).__name__}, not a {kind.__name__}")
        return known
