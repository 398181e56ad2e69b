"""A stolen node: with its certificates nothing is changed but what is its own."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import msgspec
import pytest
from driven_lab import Cluster

from podlane.api.subnets import config_key, subnets_prefix
from podlane.api.types import NODE_LEASE_NAMESPACE, Lease, Node, Pod, Secret, Service
from podlane.lab import network
from podlane.pki.profile import NODE_DAEMONS
from podlane.runtime.command import Completed, run
from podlane.store import keys
from podlane.store.roles import OPERATOR
from scheduler.agent.client import AgentClient, AgentError
from scheduler.agent.trust import Mutual

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PREFIX = "/coreos.com/network"


def etcdctl(web: Cluster, user: str, *arguments: str) -> Completed:
    """On node1, with one of its certificates or without a host's the operator's."""
    host = web.topology.host("node1")
    config = web.topology.store_config(user, host if user in NODE_DAEMONS else None)
    files = (f"--cacert={config.cafile}", f"--cert={config.certfile}", f"--key={config.keyfile}")
    argv = ["etcdctl", f"--endpoints={','.join(config.endpoints)}", *files, *arguments]
    return run(network.within(web.topology.netns(host), argv), timeout=30, check=False)


def forbidden(web: Cluster) -> dict[str, tuple[str, ...]]:
    """What a thief would want to do, as etcdctl's arguments."""
    pod = next(p for p in web.ready() if p.spec.node_name == "node1").metadata.name
    node2 = msgspec.convert(msgspec.json.decode(web.podlane("get", "node", "node2", "-o", "json")), Node)
    subnet = subnets_prefix(PREFIX) + node2.spec.pod_cidr.replace("/", "-")
    heartbeat = etcdctl(web, OPERATOR, "get", keys.key_for(Lease, NODE_LEASE_NAMESPACE, "node2"), "-w", "json").stdout
    lease = msgspec.json.decode(heartbeat)["kvs"][0]["lease"]
    wanted = (
        keys.key_for(Node, "", "node2"),
        keys.key_for(Secret, "default", "new"),
        keys.key_for(Pod, "default", pod),
        keys.binding_key("node1", "default", pod),
        keys.pod_report_key("node2", "default", pod),
        keys.key_for(Service, "default", "web"),
        keys.proxy_key("node2"),
        keys.CLUSTER_CONFIG,
        keys.ELECTION_SCHEDULER,
        keys.enrolled_node_key("node1"),
        config_key(PREFIX),
        subnet,
    )
    puts = {f"write {key}": ("put", key, "{}") for key in wanted}
    return {
        **puts,
        "end node2's heartbeat": ("lease", "revoke", f"{lease:x}"),
        "delete node2's subnet": ("del", subnet),
        "delete everything": ("del", "", "--prefix"),
        "make a user": ("user", "add", "thief", "--no-password"),
        "take a role": ("user", "grant-role", "agent@node1", "root"),
        "turn authentication off": ("auth", "disable"),
    }


def agent_of_node2(web: Cluster, user: str) -> AgentClient:
    config = web.topology.store_config(user, web.topology.host("node1") if user in NODE_DAEMONS else None)
    trust = Mutual("node2", config.cafile, config.certfile, config.keyfile)
    return AgentClient(f"https://{web.topology.host('node2').address}:10250", trust)


def test_with_the_certificates_of_a_node_nothing_is_changed_but_what_is_its_own(web: Cluster) -> None:
    tries = [(daemon, what, argv) for daemon in NODE_DAEMONS for what, argv in forbidden(web).items()]
    own = keys.key_for(Node, "", "node1")
    with web.traffic() as requests:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda each: etcdctl(web, each[0], *each[2]), tries))
        said = {f"{daemon}: {what}": done for (daemon, what, _), done in zip(tries, answers, strict=True)}
        assert {what: done.stdout for what, done in said.items() if "permission denied" not in done.stderr} == {}
        assert {what for what, done in said.items() if done.returncode == 0} == set()
        value = etcdctl(web, "agent", "get", own, "--print-value-only").stdout.strip()
        assert etcdctl(web, "agent", "put", own, value).stdout.strip() == "OK", "the certificates are good ones"
        with network.inside(web.topology.netns("node1")):
            assert agent_of_node2(web, OPERATOR).stats(), "an operator is answered"
            for daemon in NODE_DAEMONS:
                with pytest.raises(AgentError, match="for operators only"):
                    agent_of_node2(web, daemon).stats()
        summary = requests.stop()
    assert summary.requests > 20
    assert (summary.failed, summary.retried) == (0, 0), summary.late
    assert len(web.ready()) == 4
