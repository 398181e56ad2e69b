"""Taking netd off a host.

Owns: the removal of what any netd with this state directory made: its VXLAN
devices (and with them their neighbours and FDB entries), routes and blackholes
of its protocol, firewall rules, the subnet file. Invariants: nothing without
netd's mark is touched; what makes it impossible is found before anything is
changed. Pods that still run lose their network. IP forwarding stays on: others
may need it by now.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from netd.cache import NetworkCache
from netd.firewall import Firewall
from netd.identity import StateLock, running
from netd.kernel import Kernel, LinuxKernel
from netd.model import Desired
from netd.plan import DeleteDevice, plan
from netd.reserve import release
from netd.seen import ask_daemon
from netd.settings import HostSettings
from netd.state import State, previous_subnets
from podlane.api.subnets import Subnets
from podlane.errors import NotFound, PodlaneError
from podlane.store.config import StoreConfig, connect


def remove_all(settings: HostSettings, folder: Path, store_config: StoreConfig, *, give_back: bool) -> Iterator[str]:
    """Say each thing that was removed. Raises PodlaneError (netd runs; something could not be removed)."""
    daemon = ask_daemon(settings)
    if process := running(folder) or (daemon["pid"] if daemon is not None else 0):
        raise PodlaneError(f"remove netd: it runs, process {process}; stop it first")
    if not folder.is_dir():
        raise PodlaneError(f"remove netd: {folder} does not exist; name the state directory it had with --state-dir")
    subnet_file = Path(settings.subnet_file)
    remembered = NetworkCache(folder).load()
    own = remembered.own if remembered is not None else previous_subnets(subnet_file)
    with StateLock(folder):
        if give_back:
            yield _given_back(store_config, settings.etcd_prefix, own)
        yield from _remove_from_kernel(folder, remembered.devices if remembered is not None else ())
        if Firewall().remove():
            yield "firewall rules removed"
        if subnet_file.exists():
            subnet_file.unlink()
            yield f"{subnet_file} removed"


def _given_back(store_config: StoreConfig, prefix: str, own: Subnets | None) -> str:
    if own is None:
        raise PodlaneError("give the lease back: it is not known which this host had; see netd leases, netd release")
    store = connect(store_config)
    try:
        release(store, prefix, own, force=True)
    except NotFound:
        return f"lease {own} was gone"
    except PodlaneError as error:
        raise PodlaneError(f"give lease {own} back: {error}; nothing was removed") from error
    finally:
        store.close()
    return f"lease {own} given back"


def _remove_from_kernel(folder: Path, remembered: tuple[str, ...]) -> Iterator[str]:
    kernel = LinuxKernel()
    nothing = Desired((), obsolete=frozenset((*remembered, *_by_mac(kernel, folder))))
    todo = plan(nothing, kernel.observe(nothing.watched, (), ()))
    kernel.apply(todo)
    yield from (f"{step.name} removed" for step in todo.device_steps if isinstance(step, DeleteDevice))
    if todo.entry_steps:
        yield f"{len(todo.entry_steps)} routes removed"


def _by_mac(kernel: Kernel, folder: Path) -> Iterator[str]:
    """VXLAN devices with a MAC address that netd drew: its first version remembered no more."""
    state = State(folder, read_only=True)
    macs = {state.mac(v6=False), state.mac(v6=True)} - {""}
    for name in (each.name for each in kernel.interfaces() if each.kind == "vxlan"):
        link = kernel.link(name)
        if link is not None and link.mac in macs:
            yield name
