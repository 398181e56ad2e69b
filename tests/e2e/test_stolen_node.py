"""A stolen node: with its certificates nothing is changed but what is its own."""

from __future__ import annotations

import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import msgspec
import pytest
from driven_lab import Cluster

from podlane.api.subnets import DEFAULT_PREFIX, config_key, subnets_prefix
from podlane.api.types import NODE_LEASE_NAMESPACE, Lease, Node, Pod, Secret, Service
from podlane.lab import network
from podlane.pki.profile import NODE_DAEMONS
from podlane.runtime.command import Completed, run
from podlane.store import keys
from podlane.store.config import StoreConfig
from podlane.store.roles import OPERATOR
from scheduler.agent.client import AgentClient, AgentError
from scheduler.agent.trust import Mutual

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

PODLANE = str(Path(sys.executable).parent / "podlane")


class Theft:
    """Somebody has the three certificates of `stolen`, where a pod of ours runs, and `other` is another node."""

    def __init__(self, web: Cluster) -> None:
        self._lab = web.topology
        pod = web.ready()[0]
        self.pod, self.stolen = pod.metadata.name, self._lab.host(pod.spec.node_name)
        self.other = next(host for host in web.nodes if host != self.stolen)
        node = msgspec.json.decode(web.podlane("get", "node", self.other.name, "-o", "json"))
        self.others_subnet = msgspec.convert(node, Node).spec.pod_cidr.replace("/", "-")

    def etcdctl(self, user: str, *arguments: str) -> Completed:
        """As one of the node's daemons, or as the operator."""
        config = self._config(user)
        files = (f"--cacert={config.cafile}", f"--cert={config.certfile}", f"--key={config.keyfile}")
        argv = ["etcdctl", f"--endpoints={','.join(config.endpoints)}", *files, *arguments]
        return run(network.within(self._lab.netns(self.stolen), argv), timeout=30, check=False)

    def ask_other_agent(self, user: str) -> object:
        config = self._config(user)
        trust = Mutual(self.other.name, config.cafile, config.certfile, config.keyfile)
        with network.inside(self._lab.netns(self.stolen)):
            return AgentClient(f"https://{self.other.address}:10250", trust).stats()

    def _config(self, user: str) -> StoreConfig:
        return self._lab.store_config(user, self.stolen if user in NODE_DAEMONS else None)

    def wishes(self) -> dict[str, tuple[str, ...]]:
        """What a thief would want to do, as etcdctl's arguments."""
        other, own = self.other.name, self.stolen.name
        heartbeat = self.etcdctl(OPERATOR, "get", keys.key_for(Lease, NODE_LEASE_NAMESPACE, other), "-w", "json").stdout
        subnet = subnets_prefix(DEFAULT_PREFIX) + self.others_subnet
        writes = (
            keys.key_for(Node, "", other),
            keys.key_for(Secret, "default", "new"),
            keys.key_for(Pod, "default", self.pod),
            keys.binding_key(own, "default", self.pod),
            keys.pod_report_key(other, "default", self.pod),
            keys.key_for(Service, "default", "web"),
            keys.proxy_key(other),
            keys.CLUSTER_CONFIG,
            keys.ELECTION_SCHEDULER,
            keys.REVOCATION_LIST,
            keys.enrolled_node_key(own),
            config_key(DEFAULT_PREFIX),
            subnet,
        )
        return {
            **{f"write {key}": ("put", key, "{}") for key in writes},
            "end the other's heartbeat": ("lease", "revoke", f"{msgspec.json.decode(heartbeat)['kvs'][0]['lease']:x}"),
            "delete the other's subnet": ("del", subnet),
            "delete everything": ("del", "", "--prefix"),
            "make a user": ("user", "add", "thief", "--no-password"),
            "take a role": ("user", "grant-role", f"agent@{own}", "root"),
            "turn authentication off": ("auth", "disable"),
        }


def test_lab_exec_is_to_etcd_whom_it_is_told_to_be(cluster: Cluster) -> None:
    def put(*who: str) -> Completed:
        argv = [
            PODLANE,
            "lab",
            "exec",
            "--name",
            cluster.topology.name,
            *who,
            "node1",
            "--",
            "etcdctl",
            "put",
            key,
            "x",
        ]
        return run(argv, timeout=30, check=False)

    key = "/podlane/written-by-a-test"
    assert "permission denied" in put("--as", "netd").stderr
    assert put().stdout == "OK\n"
    assert "--as: expected one of operator, root, agent, netd, proxyd, got 'evil'" in put("--as", "evil").stderr


def test_with_the_certificates_of_a_node_nothing_is_changed_but_what_is_its_own(web: Cluster) -> None:
    theft = Theft(web)
    tries = [(daemon, what, argv) for daemon in NODE_DAEMONS for what, argv in theft.wishes().items()]
    with web.traffic() as requests:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda each: theft.etcdctl(each[0], *each[2]), tries))
        said = {f"{daemon}: {what}": done for (daemon, what, _), done in zip(tries, answers, strict=True)}
        assert {what: done.stdout for what, done in said.items() if "permission denied" not in done.stderr} == {}
        assert {what for what, done in said.items() if done.returncode == 0} == set()

        own = keys.key_for(Node, "", theft.stolen.name)
        value = theft.etcdctl("agent", "get", own, "--print-value-only").stdout.strip()
        assert theft.etcdctl("agent", "put", own, value).stdout.strip() == "OK", "the certificates are good ones"

        assert theft.ask_other_agent(OPERATOR), "an operator is answered"
        for daemon in NODE_DAEMONS:
            with pytest.raises(AgentError, match="for operators only"):
                theft.ask_other_agent(daemon)
        summary = requests.stop()
    assert summary.requests > 20
    assert (summary.failed, summary.retried) == (0, 0), summary.late
    assert len(web.ready()) == 4
