"""Reaching a lab from outside of it.

The root namespace has no way into a lab, on purpose; a command that wants to
talk to a lab's etcd moves itself into the lab's underlay namespace first.
"""

from __future__ import annotations

from podlane.lab import cluster, network
from podlane.store.config import StoreConfig
from podlane.store.roles import OPERATOR


def running() -> list[str]:
    """Names of the labs that are there and have their network."""
    return [name for name in cluster.existing() if network.namespaces(cluster.load(name).underlay)]


def enter(name: str, user: str = OPERATOR) -> StoreConfig:
    """Move this process into a lab's underlay and return how to reach its etcd, as its operator or as `root`.

    To be called before any thread or connection is made. Raises LabError when
    there is no such lab, or one without TLS.
    """
    lab = cluster.load(name)
    cluster.Lab(lab).check_tls()
    network.enter(lab.underlay)
    return lab.store_config(user)
