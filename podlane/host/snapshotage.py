"""When this server's newest snapshot of etcd was taken, as a metric.

Owns: the gauge. A look at the folder whenever somebody asks: what counts is what is there.
"""

from __future__ import annotations

from pathlib import Path

from podlane.errors import PodlaneError
from podlane.host.layout import BACKUPS
from podlane.runtime import metrics
from podlane.store import snapshots

_TAKEN = metrics.gauge(
    "podlane_etcd_snapshot_timestamp_seconds", "When this server's newest snapshot of etcd was taken; 0 without any."
)


def tell(folder: Path = Path(BACKUPS)) -> None:
    """From now on."""
    _TAKEN.set_function(lambda: taken(folder))


def taken(folder: Path) -> float:
    try:
        return next((each.taken.timestamp() for each in snapshots.whole(folder)), 0.0)
    except PodlaneError:
        return 0.0
