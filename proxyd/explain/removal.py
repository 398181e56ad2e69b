"""Taking proxyd off a host.

Owns: the removal of what any proxyd left here: both tables, the routes to the
service ranges, and this node's acknowledgement, for which pods that end elsewhere
would wait. Invariants: nothing that is not proxyd's is touched; what fails does not keep
the rest from being removed. The sysctls stay: others may need them by now. Health-check ports
end with the process.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator

from podlane.errors import ApplyError, PodlaneError, StoreUnavailable
from podlane.runtime import command, nftables
from podlane.runtime.netlink import NETLINK_NETFILTER, NetlinkSocket
from podlane.store import keys, proxies
from proxyd.explain.answers import ask
from proxyd.explain.view import opened
from proxyd.host import ROUTE_PROTOCOL, KernelHost
from proxyd.nft import KernelNft
from proxyd.nftmsg import TABLES
from proxyd.options import Site
from proxyd.tables import FAMILIES, TABLE

_TIMEOUT = 10.0


def remove_all(site: Site, warn: Callable[[str], None]) -> Iterator[str]:
    """Say each thing that was removed, and `warn` of what was not for etcd does not answer.

    Raises PodlaneError (proxyd runs; something could not be removed).
    """
    status = ask(site.healthz_ip, site.healthz_port).status
    if status is not None:
        raise PodlaneError(f"remove proxyd: it runs, process {status.get('pid', '?')}; stop it first")
    failures: list[tuple[str, Exception]] = []
    try:
        nft, netfilter = KernelNft(), NetlinkSocket(NETLINK_NETFILTER)
    except OSError as error:
        raise PodlaneError(f"remove tables: {(error.strerror or str(error)).lower()} (needs root)") from error
    try:
        for family in FAMILIES:
            try:
                if nftables.exists(netfilter, TABLES[family]):
                    nft.delete(family)
                    yield f"table {family.name} {TABLE} removed"
            except PodlaneError as error:
                failures.append((f"remove table {family.name} {TABLE}", error))
    finally:
        nft.close()
        netfilter.close()
    try:
        routes = [route for family in ("-4", "-6") for route in _routes(family)]
        KernelHost().remove()
        yield from (f"route to {route} removed" for route in routes)
    except PodlaneError as error:
        failures.append(("remove routes", error))
    try:
        with opened(site) as store:
            acknowledged = store.get(keys.proxy_key(site.node)) is not None
            proxies.withdraw(store, site.node)
        if acknowledged:
            yield f"acknowledgement of node {site.node} withdrawn"
    except StoreUnavailable as error:
        warn(f"acknowledgement of node {site.node} not withdrawn, run this again when etcd answers: {error}")
    if failures:
        raise ApplyError(failures)


def _routes(family: str) -> list[str]:
    text = command.run(["ip", "-j", family, "route", "show", "proto", ROUTE_PROTOCOL], timeout=_TIMEOUT).stdout.strip()
    return [str(each["dst"]) for each in (json.loads(text) if text else ())]
