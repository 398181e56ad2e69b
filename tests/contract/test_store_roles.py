"""Each daemon under its own user of an etcd that asks everybody; a stolen node; and the same daemons after a restore.

One small cluster for the whole module: a scheduler and two hollow agents as processes; what netd and proxyd do in the
store is done here.
"""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from ipaddress import IPv4Network, ip_address
from pathlib import Path

import pytest
from click.testing import CliRunner

from podlane.api.meta import get_condition, is_pod_active, is_pod_ready
from podlane.api.subnets import Subnets, config_key
from podlane.api.types import (
    NODE_LEASE_NAMESPACE,
    ClusterConfig,
    Condition,
    ConfigMap,
    ConfigMapEnvSource,
    Container,
    ContainerPort,
    EnvFromSource,
    Event,
    LabelSelector,
    Lease,
    Node,
    NodeStatus,
    ObjectMeta,
    Pod,
    PodSpec,
    PodTemplateSpec,
    ReplicationController,
    ReplicationControllerSpec,
    Secret,
    SecretEnvSource,
    Service,
    ServicePort,
    ServiceSpec,
    TopologySpreadConstraint,
)
from podlane.cli.main import cli
from podlane.errors import PermissionDenied
from podlane.host.enrol import enrol_node, enrol_server
from podlane.pki import profile
from podlane.runtime.clock import SystemClock
from podlane.store import keys
from podlane.store.config import connect
from podlane.store.events import EventRecorder
from podlane.store.interface import Delete, KeyValue, LeaseNotFound, Op, Put, Store
from podlane.store.mirror import Mirror
from podlane.store.registry import Registry
from proxyd.acknowledge import Acknowledger
from proxyd.source import StoreSource, View
from scheduler.nodes_loop import SILENT
from tests.conftest import free_port, in_memory, running
from tests.contract.netd_hosts import PREFIX, Host
from tests.contract.secured_etcd import SecuredEtcd, eventually
from tests.contract.test_netd_roles import works_as_netd

pytestmark = [pytest.mark.contract, pytest.mark.timeout(300)]

MAIN = "from scheduler.cli import main; main()"
ONE, TWO = "hollow-1", "hollow-2"
ADDRESSES = {ONE: "192.168.64.1", TWO: "192.168.64.2"}
PODS = 4


class SmallCluster:
    """`root` is the administrator's store, `registry` on it."""

    def __init__(self, etcd: SecuredEtcd, root: Store) -> None:
        self.etcd, self.root = etcd, root
        self.registry = Registry(root)
        self.subnets: dict[str, str] = {}
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def enrol(self) -> None:
        self.root.txn([], [Put(config_key(PREFIX), b'{"Network":"10.5.0.0/16"}')])
        self.registry.init_cluster(ClusterConfig(node_lease_seconds=30, node_grace_seconds=1))
        with self.etcd.administration() as admin:
            admin.enable_auth()
            enrol_server(self.root, admin, server="s1", addresses=[])
            for node, address in ADDRESSES.items():
                subnets = Subnets(v4=IPv4Network(f"10.5.{node[-1]}.0/24"))  # a hollow node's is the one of its number
                enrolled = enrol_node(self.root, admin, node=node, addresses=[ip_address(address)], subnets=subnets)
                self.subnets[node] = enrolled.subnets.key

    def start(self) -> None:
        # on a machine that stands still for some seconds it goes on leading
        self._run("scheduler", profile.scheduler("s1"), "run", "--identity", "s1", "--leader-ttl", "20")
        for node in (ONE, TWO):
            arguments = ("--nodes", "1", "--first", node[-1], "--pod-network", "10.5.0.0/16", "--start-seconds", "0.1")
            self._run(node, profile.node_daemon("agent", node), "hollow", *arguments)
        eventually(lambda: self.nodes_ready() == {ONE, TWO}, "both nodes are ready")

    def _run(self, name: str, who: profile.Profile, *arguments: str) -> None:
        argv = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-c", MAIN, *arguments, *self.etcd.options(who)]
        argv += ["--healthz-port", "none", "--log-level", "info"]
        with self.log(name).open("ab") as log:
            self._processes[name] = subprocess.Popen(argv, stdout=log, stderr=log)

    def log(self, name: str) -> Path:
        return self.etcd.folder / f"{name}.log"

    def end(self) -> dict[str, int]:
        for process in self._processes.values():
            process.send_signal(signal.SIGTERM)
        try:
            return {name: process.wait(30) for name, process in self._processes.items()}
        finally:
            for process in self._processes.values():
                process.kill()

    def running(self) -> set[str]:
        return {name for name, process in self._processes.items() if process.poll() is None}

    def nodes_ready(self) -> set[str]:
        nodes = {node.metadata.name: get_condition(node.status.conditions, "Ready") for node in self._nodes()}
        return {name for name, condition in nodes.items() if condition is not None and condition.status == "True"}

    def _nodes(self) -> tuple[Node, ...]:
        return tuple(self.registry.list(Node).items)

    def ready(self) -> dict[str, str]:
        """Node by uid of every active pod, once all there should be are ready."""
        wanted = sum(rc.spec.replicas or 0 for rc in self.registry.list(ReplicationController).items)
        active = [pod for pod in self.registry.list(Pod).items if is_pod_active(pod)]
        good = len(active) == wanted and all(map(is_pod_ready, active))
        return {pod.metadata.uid: pod.spec.node_name for pod in active} if good else {}


@pytest.fixture(scope="module")
def cluster() -> Iterator[SmallCluster]:
    with (
        in_memory() as folder,
        running(SecuredEtcd(folder)) as etcd,
        contextlib.closing(connect(etcd.client_config)) as root,
    ):
        small = SmallCluster(etcd, root)
        small.enrol()
        try:
            small.start()
            fill(small.registry)
            eventually(lambda: set(small.ready().values()) == {ONE, TWO}, "pods run on both nodes")
            yield small
        finally:
            codes = small.end()
            print(codes, *(small.log(name).read_text()[-3000:] for name in codes), sep="\n")
        assert set(codes.values()) == {0}


def controller(name: str) -> ReplicationController:
    """Its pods read a config map and a secret, and a service sends them connections."""
    labels = {"app": name}
    container = Container(
        name="main",
        image="web:1",
        ports=(ContainerPort(container_port=80),),
        env_from=(
            EnvFromSource(config_map_ref=ConfigMapEnvSource(name="settings")),
            EnvFromSource(secret_ref=SecretEnvSource(name="password")),
        ),
    )
    spread = TopologySpreadConstraint(
        max_skew=1,
        topology_key="kubernetes.io/hostname",
        when_unsatisfiable="DoNotSchedule",
        label_selector=LabelSelector(match_labels=labels),
    )
    pod = PodSpec(containers=(container,), topology_spread_constraints=(spread,))
    template = PodTemplateSpec(metadata=ObjectMeta(labels=labels), spec=pod)
    spec = ReplicationControllerSpec(replicas=PODS, selector=labels, template=template)
    return ReplicationController(metadata=ObjectMeta(name=name, namespace="default"), spec=spec)


def fill(registry: Registry) -> None:
    registry.create(ConfigMap(metadata=ObjectMeta(name="settings", namespace="default"), data={"A": "1"}))
    registry.create(Secret(metadata=ObjectMeta(name="password", namespace="default"), data={"B": b"2"}))
    spec = ServiceSpec(selector={"app": "web"}, ports=(ServicePort(port=80),))
    registry.create(Service(metadata=ObjectMeta(name="web", namespace="default"), spec=spec))
    registry.create(controller("web"))


class ProxyOfOne:
    """What proxyd does in the store, without a kernel: `revision` is the last one it has seen of the slices."""

    def __init__(self, store: Store) -> None:
        clock = SystemClock()
        self._changed, self._stop = threading.Event(), threading.Event()
        self.events = EventRecorder.of_node(Registry(store), "proxyd", ONE, clock)
        self.acknowledger = Acknowledger(store, ONE, clock=clock)
        self.source = StoreSource(store, node=ONE, network_prefix=PREFIX, on_change=self._changed.set, clock=clock)
        self.view: View | None = None
        bodies = [*(body for _, body in self.source.threads), self.acknowledger.run, self._run]
        self._threads = [threading.Thread(target=body, args=(self._stop,)) for body in bodies]
        for thread in self._threads:
            thread.start()

    def _run(self, stop: threading.Event) -> None:
        while not stop.is_set():
            if self._changed.wait(0.1) and self.source.not_ready() is None:
                self._changed.clear()
                self.view = self.source.take(complete=True)
                self.acknowledger.applied(self.view.revision, terminating=True)

    def close(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(20)
        self.events.close()


@pytest.fixture(scope="module")
def proxy(cluster: SmallCluster) -> Iterator[ProxyOfOne]:
    user = profile.node_daemon("proxyd", ONE)
    with cluster.etcd.as_user(user) as store, contextlib.closing(ProxyOfOne(store)) as one:
        yield one


@pytest.fixture(scope="module")
def netd(cluster: SmallCluster) -> Iterator[Host]:
    with cluster.etcd.as_user(profile.node_daemon("netd", ONE)) as store:
        host = Host(store, 1)
        yield host
        host.killed()


def test_every_daemon_does_its_work_under_its_own_user(
    cluster: SmallCluster, proxy: ProxyOfOne, netd: Host, capfd: pytest.CaptureFixture[str]
) -> None:
    registry = cluster.registry
    works_as_netd(netd)
    assert netd.ensure().subnets.key == cluster.subnets[ONE]

    first = next(iter(cluster.ready()))
    victim = next(pod for pod in registry.list(Pod).items if pod.metadata.uid == first)
    registry.delete(Pod, "default", victim.metadata.name)  # it drains: its agent asks who is a proxy, and waits for it
    eventually(lambda: first not in cluster.ready() and cluster.ready(), "another pod in its place")
    eventually(lambda: keys.proxy_key(ONE) in keys_of(cluster.root), "proxyd acknowledges")
    proxy.events.event(registry.get(Service, "default", "web"), "Warning", "NotProgrammed", "for a test")

    def tellers() -> set[str]:
        return {event.source.component for event in registry.list(Event).items}

    eventually(lambda: tellers() >= {"agent", "proxyd", "scheduler"}, "everybody's events are there")
    assert proxy.view is not None
    assert "default/web" in proxy.view.services
    for name in ("scheduler", ONE, TWO):
        assert "permission denied" not in cluster.log(name).read_text(), name
    assert "permission denied" not in "".join(capfd.readouterr())


def keys_of(store: Store) -> dict[str, KeyValue]:
    return {kv.key: kv for kv in store.list("/").items}


def is_of(node: str, subnet: str, key: str) -> bool:
    """Whether a key is about this node alone, by its name: said again here, and not taken from the roles."""
    own = (
        f"/registry/minions/{node}",
        f"/registry/leases/kube-node-lease/{node}",
        f"/podlane/proxies/{node}",
        f"/coreos.com/network/subnets/{subnet}",
        f"/podlane/netd/coreos.com/network/recent/{subnet}",
        f"/podlane/netd/coreos.com/network/nodes/{ADDRESSES[node]}",
    )
    return key in own or key.startswith(f"/podlane/reports/{node}/")


def allowed(store: Store, *ops: Op) -> bool:
    try:
        store.txn([], list(ops))
    except PermissionDenied:
        return False
    except LeaseNotFound:  # the key has gone with it meanwhile; that it may be written was looked at first
        return True
    return True


def test_a_stolen_nodes_users_together_write_nothing_but_what_is_that_nodes(
    cluster: SmallCluster, proxy: ProxyOfOne, netd: Host
) -> None:
    netd.ensure()
    there = keys_of(cluster.root)
    places = {key.rpartition("/")[0] + "/" for key in there}
    invented = {f"{place}{name}" for place in places for name in ("invented", ONE, f"{ONE}0")}
    own = partial(is_of, ONE, cluster.subnets[ONE])
    written_by_any: set[str] = set()
    with contextlib.ExitStack() as stack:
        for daemon in profile.NODE_DAEMONS:
            store = stack.enter_context(cluster.etcd.as_user(profile.node_daemon(daemon, ONE)))
            written = {key for key in there if allowed(store, Put(key, there[key].value, there[key].lease))}
            written |= {key for key in invented - there.keys() if allowed(store, Put(key, b"x"))}
            deleted = {key for key in there if not own(key) and allowed(store, Delete(key))}
            ranges = {place for place in (*places, "/", "") if allowed(store, Delete(f"{place}none", prefix=True))}
            written_by_any |= written
            assert {key for key in written if not own(key)} == set(), daemon
            assert deleted == set(), daemon
            assert {place for place in ranges if not own(place)} == set(), daemon
            for kv in there.values():
                if kv.lease and not own(kv.key):
                    with pytest.raises(PermissionDenied):
                        store.revoke(kv.lease)
            for secret in ("/podlane/join-tokens/", "/podlane-admin/", keys.bindings_prefix(TWO), "/registry/pods/"):
                with pytest.raises(PermissionDenied, match=f"for user {daemon}@{ONE}"):
                    store.list(secret)
    assert {key for key in there if own(key)} <= written_by_any
    assert len(there) > len(written_by_any) > 10
    left = [key for key in keys_of(cluster.root) if key.endswith(("/invented", f"/{ONE}0"))]
    cluster.root.txn([], [Delete(key) for key in left])


def test_a_dead_node_is_not_kept_alive_by_a_stolen_one(cluster: SmallCluster) -> None:
    dead, etcd, registry = "dead", cluster.etcd, cluster.registry
    with etcd.administration() as admin:
        subnets = Subnets(v4=IPv4Network("10.5.9.0/24"))
        enrol_node(cluster.root, admin, node=dead, addresses=[ip_address("192.168.64.9")], subnets=subnets)
    with etcd.as_user(profile.node_daemon("agent", dead)) as store:  # it had a second left to live
        ready = NodeStatus(conditions=(Condition(type="Ready", status="True"),))
        Registry(store).create(Node(metadata=ObjectMeta(name=dead), status=ready))
        lease = store.grant(120)
        Registry(store).put_node_lease(dead, lease, 1)

    def condition() -> Condition:
        found = get_condition(registry.get(Node, "", dead).status.conditions, "Ready")
        assert found is not None
        return found

    with etcd.as_user(profile.node_daemon("agent", ONE)) as thief:
        eventually(lambda: thief.keep_alive(lease) and condition().message == SILENT, "the scheduler is not deceived")
    assert registry.get(Lease, NODE_LEASE_NAMESPACE, dead)
    assert condition().status == "Unknown"
    cluster.root.revoke(lease)
    registry.delete(Node, "", dead)


# --- a restore to an older snapshot -----------------------------------------------------

LASTING = ("/podlane-admin/", keys.CLUSTER_CONFIG, PREFIX, "/registry/controllers/", "/registry/secrets/")


def lasting(store: Store) -> dict[str, bytes]:
    """What nobody writes on his own."""
    return {kv.key: kv.value for prefix in LASTING for kv in store.list(prefix).items}


def podlane(*arguments: str) -> str:
    done = CliRunner().invoke(cli, ["etcd", *arguments], prog_name="podlane", catch_exceptions=False)
    assert done.exit_code == 0, done.output
    return done.stdout


def restored(etcd: SecuredEtcd, file: Path) -> None:
    """As an operator does it; then the store is written to before any daemon sees it, past what they saw last."""
    (member,) = etcd.members
    with etcd.as_user(profile.administrator()) as store:
        before = store.txn([], []).revision
    etcd.stop()
    arguments = ("--data-dir", str(member.folder / member.name), "--name", member.name, "--peer-url", member.peer_url)
    assert f"member {member.name} restored" in podlane("restore", str(file), *arguments, "--force")
    port, member.client_port = member.client_port, free_port()
    etcd.start()
    with etcd.as_user(profile.administrator()) as store:
        while store.txn([], [Put("/elsewhere", b"x")]).revision < before + 100:
            pass
    etcd.stop()
    member.client_port = port
    etcd.start()


def test_after_a_restore_everybody_goes_on_without_a_restart(
    cluster: SmallCluster, proxy: ProxyOfOne, netd: Host, tmp_path: Path
) -> None:
    etcd, registry, root = cluster.etcd, cluster.registry, cluster.root
    eventually(cluster.ready, "all is well before")
    netd.ensure()
    kept, before = cluster.ready(), lasting(root)
    podlane("snapshot", str(tmp_path / "etcd.db"), *etcd.options())

    registry.create(controller("later"))
    spec = ServiceSpec(selector={"app": "later"}, ports=(ServicePort(port=80),))
    registry.create(Service(metadata=ObjectMeta(name="later", namespace="default"), spec=spec))
    eventually(lambda: len(cluster.ready()) == 2 * PODS, "pods that the snapshot does not know")
    eventually(lambda: proxy.view is not None and "default/later" in proxy.view.services, "and a service")
    stop = threading.Event()
    mirror = Mirror(netd.store, f"{PREFIX}/", decode=lambda kv: kv.value, on_change=lambda: None, name="restore")
    thread = threading.Thread(target=mirror.run, args=(stop,))
    thread.start()
    try:
        eventually(lambda: mirror.synced and mirror.view()[1] == 1, "netd's mirror")

        restored(etcd, tmp_path / "etcd.db")

        assert lasting(root) == before
        assert '"authentication": true' in podlane("status", "-o", "json", *etcd.options())
        with etcd.as_user(profile.operator("stranger")) as store, pytest.raises(PermissionDenied):
            store.get(keys.CLUSTER_CONFIG)
        eventually(lambda: mirror.view()[1] == 2, "netd sees that it is another history")
    finally:
        stop.set()
        thread.join(20)
    eventually(lambda: proxy.view is not None and "default/later" not in proxy.view.services, "proxyd too")
    assert netd.ensure().subnets.key == cluster.subnets[ONE]
    eventually(lambda: cluster.ready() == kept, "the pods of the snapshot are as they were")
    registry.create(controller("after"))
    eventually(lambda: len(cluster.ready()) == 2 * PODS, "new pods are made, placed, started and told of")
    assert set(cluster.ready().values()) == {ONE, TWO}
    assert cluster.running() == {"scheduler", ONE, TWO}
