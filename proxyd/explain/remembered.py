"""What the affinity map remembers of one client: reading and forgetting it.

Owns: the messages for one element of that map, which packets fill and proxyd never
writes; the map may have a million, so it is asked for the one that matters.
"""

from __future__ import annotations

import errno

from podlane.runtime import netlink as nl
from podlane.runtime import nftables
from podlane.runtime.netlink import NetlinkError, NetlinkSocket
from proxyd.nftmsg import TABLES
from proxyd.tables import AFFINITY, Family, Frontend, Key, pack_address, pack_frontend


def key_of(frontend: Frontend, client: str) -> Key:
    return pack_frontend(frontend) + pack_address(client)


def endpoint_id(socket: NetlinkSocket, family: Family, key: Key) -> bytes | None:
    """To which endpoint's id the client goes; None when it is not known, or there is no such map."""
    named = nl.text(nftables.SET_NAME, AFFINITY.name)
    try:
        body = socket.ask(
            TABLES[family].message(nftables.GETSETELEM, named, nl.nest(nftables.SET_ELEMENTS, _element(key)))
        )
    except NetlinkError as error:
        if error.errno == errno.ENOENT:
            return None
        raise
    for _, each in nl.attributes(nftables.packed_elements(body)):
        return bytes(nl.attribute_map(each)[nftables.ELEM_DATA][4:])
    return None


def forget(socket: NetlinkSocket, family: Family, key: Key) -> None:
    """Delete it; nothing happens when it is not there."""
    changes = [each for each, _ in TABLES[family].change_elements(nftables.DELSETELEM, AFFINITY.name, [_element(key)])]
    nftables.commit(socket, [nftables.BEGIN, *changes, nftables.END])


def _element(key: Key) -> bytes:
    return nl.nest(nftables.LIST_ELEM, nl.nest(nftables.ELEM_KEY, nl.attr(nftables.DATA_VALUE, key)))
