"""The scheduler's process: mirrors always, the election always, the loops while it leads.

Owns: how the parts are put together. Invariant: a standby does everything a
leader does but decide and write, so that taking over is quick.
"""

from __future__ import annotations

import threading
from functools import partial

from podlane.runtime.clock import SystemClock
from podlane.runtime.options import DaemonOptions
from podlane.store.config import StoreConfig, connect
from podlane.store.election import Election
from podlane.store.events import EventRecorder
from podlane.store.keys import ELECTION_SCHEDULER
from podlane.store.registry import Registry
from scheduler.cluster import Cluster
from scheduler.leader import Leader


def run_daemon(identity: str, leader_ttl: int, store_config: StoreConfig, options: DaemonOptions) -> int:
    """Run until a signal and return the exit code. `leader_ttl` in seconds."""
    clock = SystemClock()
    daemon = options.make_daemon("scheduler", clock=clock)
    store = connect(store_config)
    daemon.on_stop(store.close)
    registry = Registry(store, clock=clock)
    cluster = Cluster(registry, clock)
    leader = Leader(cluster, lambda fenced: EventRecorder(fenced, "scheduler", identity, clock), clock)
    election = Election(store, ELECTION_SCHEDULER, identity, ttl=leader_ttl, clock=clock)

    for mirror in cluster.mirrors:
        daemon.add_thread(f"mirror-{mirror.name}", mirror.run)
    daemon.add_thread("heartbeats", cluster.heartbeats.run)
    daemon.add_thread("election", partial(_campaign, election, leader, cluster))
    daemon.add_ready_check("scheduler", leader.not_ready)
    return daemon.run()


def _campaign(election: Election, leader: Leader, cluster: Cluster, stop: threading.Event) -> None:
    """Stand for election once there is something to lead with: a leader that knows nothing helps nobody."""
    for mirror in cluster.mirrors:
        while not stop.is_set() and not mirror.wait_synced(0.5):
            pass
    if not stop.is_set():
        election.run(stop, leader.lead)
