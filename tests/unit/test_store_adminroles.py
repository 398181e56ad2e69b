"""Roles as values, and the steps from what etcd has to them; each interrupted anywhere comes to the same end."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from podlane.store import adminwire as wire
from podlane.store.roles import Permission, Role, node_roles, operator_role, scheduler_role

READ, WRITE, BOTH = 0, 1, 2


def roles_of(node: str) -> dict[str, tuple[Role, ...]]:
    return node_roles(node, subnet_keys=["10.5.34.0-24"], addresses=["192.168.64.11", "FD00::11"])


def test_a_node_writes_what_names_it() -> None:
    lines = {user: str(roles[-1]) for user, roles in roles_of("w1").items()}
    assert lines == {
        "netd@w1": "netd@w1: readwrite /coreos.com/network/subnets/10.5.34.0-24, "
        "readwrite /podlane/netd/coreos.com/network/recent/10.5.34.0-24, "
        "readwrite /podlane/netd/coreos.com/network/nodes/192.168.64.11, "
        "readwrite /podlane/netd/coreos.com/network/nodes/fd00::11",
        "proxyd@w1": "proxyd@w1: readwrite /podlane/proxies/w1, readwrite /podlane/reports/w1/events/proxyd/*",
        "agent@w1": "agent@w1: read /podlane/bindings/w1/*, readwrite /registry/minions/w1, "
        "readwrite /registry/leases/kube-node-lease/w1, readwrite /podlane/reports/w1/pods/*, "
        "readwrite /podlane/reports/w1/events/agent/*",
    }


def test_what_all_nodes_read_is_the_same_roles() -> None:
    shared = [{user.partition("@")[0]: roles[:-1] for user, roles in roles_of(node).items()} for node in ("w1", "w2")]
    assert shared[0] == shared[1]
    assert {p.access for roles in shared[0].values() for role in roles for p in role.permissions} == {"read"}


def test_no_role_has_two_ranges_that_begin_alike() -> None:
    every = [role for roles in roles_of("w1").values() for role in roles]
    for role in (*every, scheduler_role(), operator_role()):
        keys = [permission.key for permission in role.permissions]
        assert len(keys) == len(set(keys)), role


def test_nobody_but_root_decides_who_is_a_server() -> None:
    every = [role for roles in roles_of("w1").values() for role in roles]
    written = [
        permission
        for role in (*every, scheduler_role(), operator_role())
        for permission in role.permissions
        if permission.access != "read"
    ]
    assert not [p for p in written if "/podlane-admin/".startswith(p.key) or p.key.startswith("/podlane-admin/")]


def test_another_prefix_of_flannels() -> None:
    (read, own) = node_roles("w1", subnet_keys=["a"], addresses=[], prefix="/net/")["netd@w1"]
    assert str(read) == "netd: read /net/*, read /podlane/netd/net/*"
    assert str(own) == "netd@w1: readwrite /net/subnets/a, readwrite /podlane/netd/net/recent/a"


# --- from what is there to what is wanted ------------------------------------------------


def grants(*permissions: Permission) -> frozenset[wire.Grant]:
    return wire.grants_of(Role("r", permissions))


def apply(have: frozenset[wire.Grant], steps: list[tuple[str, wire.Grant]]) -> frozenset[wire.Grant]:
    """As etcd 3.4: a grant replaces the type of the very range if that is the first of its start, else it adds."""
    for step, grant in steps:
        if step == "revoke":
            have = frozenset(each for each in have if each[1:] != grant[1:])
            continue
        first = next((each for each in sorted(have, key=lambda each: each[1:]) if each[1] >= grant[1]), None)
        if first is not None and first[1:] == grant[1:]:
            have -= {first}
        have |= {grant}
    return have


def test_what_is_missing_is_granted_before_what_is_too_much_is_revoked() -> None:
    have = grants(Permission("readwrite", "/a"), Permission("read", "/b/", prefix=True))
    want = grants(Permission("read", "/a"), Permission("read", "/c/", prefix=True))
    assert wire.steps(have, want) == [
        ("grant", (READ, b"/a", b"")),
        ("grant", (READ, b"/c/", b"/c0")),
        ("revoke", (READ, b"/b/", b"/b0")),
    ]
    assert wire.steps(want, want) == []


def test_a_range_that_is_there_twice_is_made_anew() -> None:
    have = frozenset({(READ, b"/a", b"/b"), (BOTH, b"/a", b"/b"), (READ, b"/c", b"")})
    want = frozenset({(READ, b"/a", b"/b"), (READ, b"/c", b"")})
    steps = wire.steps(have, want)
    assert [(step, grant[1:]) for step, grant in steps] == [("revoke", (b"/a", b"/b")), ("grant", (b"/a", b"/b"))]
    assert apply(have, steps) == want


_keys = st.sampled_from(["/a", "/a/", "/b", "/b/c"])
_permission = st.builds(Permission, st.sampled_from(["read", "write", "readwrite"]), _keys, st.booleans())


@st.composite
def _role(draw: st.DrawFn) -> frozenset[wire.Grant]:
    """No two of one key, as Role promises."""
    found = draw(st.lists(_permission, max_size=4, unique_by=lambda permission: permission.key))
    return grants(*found)


@given(have=st.lists(_permission, max_size=5).map(lambda found: grants(*found)), want=_role(), cut=st.integers(0, 12))
def test_interrupted_and_repeated_it_ends_with_what_is_wanted(
    have: frozenset[wire.Grant], want: frozenset[wire.Grant], cut: int
) -> None:
    have = apply(have, wire.steps(have, want)[:cut])
    for _ in range(2):  # another's doubled ranges take two
        have = apply(have, wire.steps(have, want))
    assert have == want
