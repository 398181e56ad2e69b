"""Taking netd off a host.

Owns: the removal of what any netd with this state directory made: its VXLAN
devices (and with them their neighbours and FDB entries), routes and blackholes
of its protocol, firewall rules, the subnet file. Invariant: nothing without
netd's mark is touched. Pods that still run lose their network.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from netd.cache import NetworkCache
from netd.firewall import Firewall
from netd.identity import StateLock
from netd.kernel import LinuxKernel
from netd.model import Desired
from netd.plan import plan
from netd.reserve import release
from netd.seen import ask_daemon
from netd.settings import HostSettings
from podlane.errors import NotFound, PodlaneError
from podlane.store.config import StoreConfig, connect


def remove_all(settings: HostSettings, folder: Path, store_config: StoreConfig, *, give_back: bool) -> Iterator[str]:
    """Say each thing that was removed. Raises PodlaneError (netd runs; something could not be removed)."""
    if (daemon := ask_daemon(settings)) is not None:
        raise PodlaneError(f"remove netd: it runs, process {daemon['pid']}; stop it first")
    remembered = NetworkCache(folder).load()
    with StateLock(folder):
        kernel = LinuxKernel()
        devices = remembered.devices if remembered is not None else ()
        nothing = Desired((), obsolete=frozenset(devices))
        todo = plan(nothing, kernel.observe(nothing.watched, (), ()))
        kernel.apply(todo)
        yield from (str(step) for step in todo.device_steps)
        if todo.entry_steps:
            yield f"{len(todo.entry_steps)} routes removed"
        Firewall().remove()
        yield "firewall rules removed"
        subnet_file = Path(settings.subnet_file)
        if subnet_file.exists():
            subnet_file.unlink()
            yield f"{subnet_file} removed"
        if give_back and remembered is not None:
            store = connect(store_config)
            try:
                release(store, settings.etcd_prefix, remembered.own, force=True)
                yield f"lease {remembered.own} given back"
            except NotFound:
                yield f"lease {remembered.own} was gone"
            finally:
                store.close()
