"""Who may join as what, and who may renew: states in, profiles or the reason out."""

from __future__ import annotations

from ipaddress import ip_address

import msgspec
import pytest

from podlane.host.enrol import Hosts
from podlane.host.joinmessages import JoinRequest
from podlane.host.joinrules import Admission, Known, Refused, admit, check_token, key_hash, renewal
from podlane.host.jointokens import TokenRecord
from podlane.pki import certificates as c
from podlane.pki import profile
from podlane.pki.profile import NODE_DAEMONS, SERVER_DAEMONS
from podlane.store.enrolled import HostRecord

pytestmark = pytest.mark.unit

CSRS = {name: c.new_request(c.new_key(), name) for name in (*NODE_DAEMONS, *SERVER_DAEMONS)}
HASHES = {name: key_hash(csr) for name, csr in CSRS.items()}
NODE_CSRS = {name: CSRS[name] for name in NODE_DAEMONS}
SERVER_CSRS = {name: CSRS[name] for name in SERVER_DAEMONS}

TOKEN = TokenRecord("salt", "hash", "node", 3, "", "")
SERVER_TOKEN = msgspec.structs.replace(TOKEN, role="server")
REQUEST = JoinRequest("t", "node", "web1", ("10.0.0.11",), NODE_CSRS)
SERVER_REQUEST = JoinRequest("t", "server", "s2", ("10.0.0.2",), SERVER_CSRS)
EMPTY = Known(Hosts({}, {}))
CLUSTER = Known(
    Hosts(
        nodes={
            "web2": HostRecord(("10.0.0.12",), "10.5.2.0-24", "another key"),
            "mine": HostRecord(("10.0.0.13",), "10.5.3.0-24", HASHES["agent"]),
            "stolen": HostRecord(revoked="2026-11-01T00:00:00Z"),
        },
        servers={
            "s1": HostRecord(("10.0.0.1",), "", "another key"),
            "mine-too": HostRecord(("10.0.0.2",), "", HASHES["etcd"]),
        },
    ),
    frozenset({"etcd1"}),
    ("https://10.0.0.9:2379", "https://db.example.com:2379"),
    {ip_address("10.0.0.14"): "old-host", ip_address("10.0.0.15"): "web5", ip_address("10.0.0.13"): "mine"},
)


def change(request: JoinRequest, **changes: object) -> JoinRequest:
    return msgspec.structs.replace(request, **changes)


def refusal(request: JoinRequest, token: TokenRecord = TOKEN, known: Known = CLUSTER) -> str:
    with pytest.raises(Refused) as found:
        admit(request, token, known)
    return f"{found.value.status}: {found.value}"


def test_a_node_gets_three_certificates_and_is_known_by_its_agents_key() -> None:
    found = admit(REQUEST, TOKEN, EMPTY)
    assert found == Admission(
        "web1",
        (ip_address("10.0.0.11"),),
        {name: profile.node_daemon(name, "web1") for name in NODE_DAEMONS},
        {name: HASHES[name] for name in NODE_DAEMONS},
    )
    assert (found.is_node, found.is_server) == (True, False)


def test_a_server_gets_its_own_and_with_a_node_on_it_all() -> None:
    found = admit(SERVER_REQUEST, SERVER_TOKEN, EMPTY)
    assert found.profiles["etcd"] == profile.etcd("s2", ("10.0.0.2",))
    assert set(found.profiles) == set(SERVER_DAEMONS)
    both = admit(change(SERVER_REQUEST, csrs=CSRS), SERVER_TOKEN, EMPTY)
    assert (both.is_node, both.is_server, len(both.profiles)) == (True, True, 6)


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"name": "Web_1"}, "400: name: expected a DNS name"),
        ({"name": "a" * 60}, "400: name: expected at most 53 characters, got 60"),
        ({"role": "server"}, "403: the token is for a node, not for a server"),
        ({"addresses": ("10.0.0.300",)}, '400: addresses: expected an IP address, got "10.0.0.300"'),
        ({"addresses": ("127.0.0.1",)}, "400: addresses: other hosts cannot reach 127.0.0.1"),
        ({"addresses": ("fe80::1",)}, "400: addresses: other hosts cannot reach fe80::1"),
        ({"addresses": ("0.0.0.0",)}, "400: addresses: other hosts cannot reach 0.0.0.0"),
        ({"addresses": ("10.0.0.21", "10.0.0.22")}, "400: addresses: expected one of each family"),
        ({"csrs": {"agent": CSRS["agent"]}}, "400: csrs: expected agent, netd, proxyd, got agent"),
        ({"csrs": {**NODE_CSRS, "etcd": CSRS["etcd"]}}, "400: csrs: expected agent, netd, proxyd, got agent, etcd"),
        ({"csrs": {**NODE_CSRS, "netd": "none"}}, "400: csrs: netd: read certificate request"),
        ({"csrs": {**NODE_CSRS, "netd": CSRS["agent"]}}, "400: csrs: expected a key of its own for each"),
        ({"name": "s1"}, "409: the name s1 is a server's"),
        ({"name": "etcd1"}, "409: the name etcd1 is a server's"),
        ({"name": "db.example.com"}, "409: the name db.example.com is a server's"),
        ({"name": "localhost"}, "409: the name localhost is a server's"),
        ({"name": "web2"}, "409: there is a node web2 already; choose another name, or, if this is the same machine"),
        ({"name": "stolen"}, "409: node stolen was revoked at 2026-11-01T00:00:00Z"),
        ({"addresses": ("10.0.0.12",)}, "409: address 10.0.0.12 is node web2's"),
        ({"addresses": ("10.0.0.1",)}, "409: address 10.0.0.1 is server s1's"),
        ({"addresses": ("10.0.0.9",)}, "409: address 10.0.0.9 is an etcd member's"),
        ({"addresses": ("10.0.0.14",)}, "409: address 10.0.0.14 is in use by the netd of host old-host"),
    ],
)
def test_what_a_node_is_refused_for(changes: dict[str, object], why: str) -> None:
    assert refusal(change(REQUEST, **changes)).startswith(why)


def test_without_a_network_nobody_joins() -> None:
    known = Known(Hosts({}, {}), network_configured=False)
    assert refusal(REQUEST, known=known) == "409: the cluster has no network config yet: run `podlane init` first"


@pytest.mark.parametrize(
    "request_",
    [
        change(REQUEST, name="mine"),  # with the key it has: its first try was cut off
        change(REQUEST, name="mine", addresses=("10.0.0.13",)),
        change(REQUEST, name="web5", addresses=("10.0.0.15",)),  # its netd ran before it was enrolled
    ],
)
def test_a_host_is_no_stranger_to_itself(request_: JoinRequest) -> None:
    assert admit(request_, TOKEN, CLUSTER).name == request_.name


@pytest.mark.parametrize("name", ["web2", "stolen"])
def test_a_token_made_for_a_name_gives_it_once(name: str) -> None:
    token = msgspec.structs.replace(TOKEN, node=name, uses=1)
    request = change(REQUEST, name=name)
    assert admit(request, token, CLUSTER).name == name
    assert refusal(REQUEST, token) == f"403: the token is for {name} alone, this host is web1"
    used = msgspec.structs.replace(token, used=(name,))
    assert refusal(request, used).startswith("409: ")


def test_a_token_for_a_name_gives_no_node_a_servers() -> None:
    token = msgspec.structs.replace(TOKEN, node="s1", uses=1)
    assert refusal(change(REQUEST, name="s1"), token).startswith("409: the name s1 is a server's")


def test_a_used_up_token_is_good_for_those_who_used_it() -> None:
    token = msgspec.structs.replace(TOKEN, uses=2, used=("a", "mine"))
    assert refusal(REQUEST, token).startswith("403: the token is used up (by a, mine); `podlane join-token`")
    assert admit(change(REQUEST, name="mine"), token, CLUSTER).name == "mine"


@pytest.mark.parametrize("name", ["s1", "web2", "etcd1"])
def test_a_server_takes_nobodys_name_but_with_a_token_for_it(name: str) -> None:
    request = change(SERVER_REQUEST, name=name, addresses=("10.0.0.22",))
    assert refusal(request, SERVER_TOKEN).startswith(f"409: there is a host {name} already")
    token = msgspec.structs.replace(SERVER_TOKEN, node=name)
    assert admit(request, token, CLUSTER).name == name


def test_a_server_whose_first_try_was_cut_off_tries_again() -> None:
    assert admit(change(SERVER_REQUEST, name="mine-too"), SERVER_TOKEN, CLUSTER).name == "mine-too"


def test_without_the_secret_nothing_is_told() -> None:
    for record in (None, TOKEN, msgspec.structs.replace(TOKEN, uses=0)):
        with pytest.raises(Refused, match="the token is not known here"):
            check_token(record, "guess")


# ---- renewal ---------------------------------------------------------------------------------------

AGENT = profile.node_daemon("agent", "mine")


def renewed(caller: profile.Profile = AGENT, key: str = HASHES["agent"], **csrs: str) -> object:
    try:
        return renewal(caller, key, csrs, CLUSTER.hosts)
    except Refused as error:
        return f"{error.status}: {error}"


def test_a_node_renews_its_own_three() -> None:
    assert renewed(**NODE_CSRS) == {name: profile.node_daemon(name, "mine") for name in NODE_DAEMONS}
    assert renewed(netd=CSRS["netd"]) == {"netd": profile.node_daemon("netd", "mine")}
    assert renewed() == {}


def test_a_server_renews_its_own_with_the_addresses_it_joined_with() -> None:
    server = profile.etcd("mine-too", ("10.0.0.99",))
    assert renewed(server, HASHES["etcd"], etcd=CSRS["etcd"]) == {"etcd": profile.etcd("mine-too", ("10.0.0.2",))}


@pytest.mark.parametrize(
    ("caller", "key", "csr", "why"),
    [
        (profile.node_daemon("netd", "mine"), "agent", "netd", "403: netd@mine: expected the certificate of a node's"),
        (profile.operator("anna"), "agent", "netd", "403: anna: expected the certificate of a node's agent"),
        (profile.administrator(), "agent", "netd", "403: root: expected the certificate of a node's agent"),
        (profile.node_daemon("agent", "nobody"), "agent", "netd", "403: nobody is not enrolled any more"),
        (profile.node_daemon("agent", "stolen"), "agent", "netd", "403: stolen is not enrolled any more"),
        (profile.node_daemon("agent", "web2"), "agent", "netd", "403: web2 was enrolled anew with another key since"),
        (AGENT, "agent", "etcd", "400: csrs: expected netd, proxyd, agent, got etcd"),
        (AGENT, "netd", "agent", "403: mine was enrolled anew with another key since"),
        (profile.etcd("mine-too", ()), "etcd", "agent", "400: csrs: expected etcd, scheduler, join, got agent"),
    ],
)
def test_what_a_renewal_is_refused_for(caller: profile.Profile, key: str, csr: str, why: str) -> None:
    assert str(renewed(caller, HASHES[key], **{csr: CSRS[csr]})).startswith(why)


def test_a_renewal_brings_no_new_key_to_the_one_that_speaks() -> None:
    other = c.new_request(c.new_key(), "agent")
    assert renewed(agent=other) == "400: csrs: agent: a renewal keeps the key; for a new one let the host join anew"


def test_a_host_enrolled_without_its_key_being_known_may_renew() -> None:
    hosts = Hosts({"web9": HostRecord(("10.0.0.19",), "10.5.9.0-24")}, {})
    found = renewal(profile.node_daemon("agent", "web9"), HASHES["agent"], NODE_CSRS, hosts)
    assert set(found) == set(NODE_DAEMONS)
