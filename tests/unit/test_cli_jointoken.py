"""`podlane join-token`, and what is said of a node's certificates when it is deleted."""

from __future__ import annotations

import json
import re

import msgspec
import pytest

from podlane.api.types import Node, ObjectMeta
from podlane.host.joinservice import ServiceRecord
from podlane.store import keys
from podlane.store.enrolled import HostRecord
from podlane.store.interface import Put
from tests.unit.cli_shell import Shell, lines

pytestmark = pytest.mark.unit

HASH = "A" * 43


@pytest.fixture
def serving() -> Shell:
    """A cluster with two join services."""
    shell = Shell()
    for server in ("s1", "s2"):
        record = ServiceRecord((f"https://{server}:10261",), HASH, "2026-11-29T00:00:00Z", "0.1.0")
        shell.store.txn([], [Put(keys.join_service_key(server), msgspec.json.encode(record))])
    return shell


def test_the_line_to_paste_is_all_there_is_on_stdout(serving: Shell) -> None:
    line = serving.ok("join-token")
    assert re.fullmatch(
        r"sudo sh podlane-0\.1\.0\.run install --role node --join https://s1:10261,https://s2:10261 "
        rf"--token [a-z0-9]{{8}}\.[\w-]{{22}}\.{HASH}\n",
        line,
    )


def test_json_has_the_parts_and_every_wish_is_in_the_line(serving: Shell) -> None:
    made = json.loads(serving.ok("join-token", "create", "--node", "web1", "--server", "10.0.0.9", "-o", "json"))
    assert made["command"].split("--token")[0] == (
        "sudo sh podlane-0.1.0.run install --role node --name web1 --join https://10.0.0.9:10261 "
    )
    assert made["token"] == f"{made['id']}.{made['token'].split('.')[1]}.{made['caHash']}"
    assert (made["created"], made["expires"]) == ("2026-03-01T12:00:00Z", "2026-03-02T12:00:00Z")
    assert (made["uses"], made["usedBy"], made["role"], made["authorityKey"]) == (1, [], "node", False)


def test_what_is_good_to_know_is_told_beside_it(serving: Shell) -> None:
    put = [
        Put(keys.enrolled_node_key("web1"), msgspec.json.encode(HostRecord(("10.0.0.11",)))),
        Put(keys.enrolled_node_key("web2"), msgspec.json.encode(HostRecord(revoked="2026-02-01T00:00:00Z"))),
    ]
    serving.store.txn([], put)
    said = serving.run("join-token", "--uses", "3", "--ttl", "1h").stderr
    assert said.startswith(
        "for 3 hosts, as node, until 2026-03-01T13:00:00Z; to take it back: podlane join-token delete "
    )
    said = serving.run("join-token", "--node", "web1").stderr
    assert "warning: there is a node web1; the host that joins with this takes its place" in said
    said = serving.run("join-token", "--node", "web2").stderr
    assert "warning: web2 was revoked at 2026-02-01T00:00:00Z: " in said
    with_key = serving.run("join-token", "--role", "server", "--authority-key")
    assert with_key.stdout.endswith(" --admits\n")
    said = with_key.stderr
    assert "podlane etcd add-member" in said
    assert "warning: the host gets the authority's key" in said


def test_tokens_are_listed_without_their_secrets_and_deleted(serving: Shell) -> None:
    assert serving.run("join-token", "list").stderr == "No join tokens found.\n"
    one = json.loads(serving.ok("join-token", "-o", "json"))
    serving.clock.advance(60)  # type: ignore[attr-defined]
    two = json.loads(serving.ok("join-token", "--role", "server", "--node", "s3", "-o", "json"))
    assert lines(serving.ok("join-token", "list", "-o", "name")) == [one["id"], two["id"]]
    header, *rows = lines(serving.ok("join-token", "list"))
    assert header.split() == ["ID", "ROLE", "NODE", "USED", "EXPIRES", "IN", "BY"]
    assert [row.split() for row in rows] == [
        [one["id"], "node", "-", "0/1", "23h", "-"],
        [two["id"], "server", "s3", "0/1", "24h", "-"],
    ]
    assert one["token"].split(".")[1] not in serving.ok("join-token", "list", "-o", "json")
    assert serving.ok("join-token", "delete", one["id"], two["token"]) == (
        f"join-token/{one['id']} deleted\njoin-token/{two['id']} deleted\n"
    )
    assert serving.fails("join-token", "delete", one["id"]).startswith(
        f"error: delete join token {one['id']}: there is"
    )


def test_what_makes_no_sense_is_refused_and_makes_nothing(serving: Shell) -> None:
    before = serving.revision()
    assert "1 to 1000 uses, got 0" in serving.fails("join-token", "--uses", "0", code=2)
    assert "from 1m to 720h" in serving.fails("join-token", "--ttl", "5s", code=2)
    assert "expected https://HOST[:10261]" in serving.fails("join-token", "--server", "http://a", code=2)
    assert "expected a DNS name" in serving.fails("join-token", "--node", "Web_1", code=2)
    assert serving.revision() == before
    assert "no join service runs; start it" in Shell().fails("join-token")


def test_of_a_deleted_node_it_is_said_that_its_certificates_stay() -> None:
    shell = Shell()
    for name in ("web1", "web2"):
        shell.add(Node(metadata=ObjectMeta(name=name)))
    shell.store.txn([], [Put(keys.enrolled_node_key("web1"), msgspec.json.encode(HostRecord(("10.0.0.11",))))])
    said = shell.run("delete", "node", "web1", "web2").stderr
    assert said == "node web1 keeps its certificates and its subnet; `podlane pki revoke web1` takes both away\n"
