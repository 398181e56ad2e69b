"""delete, scale and label."""

from __future__ import annotations

import pytest
from cli_shell import Shell, lines, owner, pod, rc, with_meta
from msgspec.structs import replace
from scheduler_world import Scheduler

from podlane.api.meta import controller_of
from podlane.api.types import Namespace, ObjectMeta, Pod, ReplicationController, Service, ServicePort, ServiceSpec
from podlane.errors import NotFound
from scheduler.garbage_loop import GarbageLoop
from scheduler.namespaces_loop import NamespacesLoop
from scheduler.replication_loop import ReplicationLoop

pytestmark = pytest.mark.unit


@pytest.fixture
def shell() -> Shell:
    shell = Shell()
    shell.add(pod("web-1"), pod("web-2"), pod("waits", node="", labels={"app": "x"}), rc())
    return shell


def exists(shell: Shell, cls, name: str, namespace: str = "default") -> bool:
    try:
        shell.registry.get(cls, namespace, name)
    except NotFound:
        return False
    return True


def agent_ends(shell: Shell, name: str, after: float) -> None:
    """The agent of the pod's node removes it so many seconds from now."""

    def remove() -> None:
        shell.registry.delete_many([shell.registry.get(Pod, "default", name)], grace_seconds=0)

    shell.clock.at(shell.clock.monotonic() + after, remove)


# --- delete -----------------------------------------------------------------------------


def test_an_unplaced_pod_goes_at_once(shell):
    assert shell.ok("delete", "pod", "waits") == 'pod "waits" deleted\n'
    assert not exists(shell, Pod, "waits")


def test_a_running_pod_is_waited_for(shell):
    agent_ends(shell, "web-1", after=12)
    begin = shell.clock.monotonic()
    assert shell.ok("delete", "pod/web-1") == 'pod "web-1" deleted\n'
    assert 12 <= shell.clock.monotonic() - begin < 14
    assert not exists(shell, Pod, "web-1")


def test_no_wait_leaves_it_ending_with_its_grace(shell):
    shell.ok("delete", "pod/web-1", "--wait=false")
    assert shell.registry.get(Pod, "default", "web-1").metadata.deletion_grace_period_seconds == 30
    shell.ok("delete", "pod/web-2", "--no-wait", "--grace-period=5")
    assert shell.registry.get(Pod, "default", "web-2").metadata.deletion_grace_period_seconds == 5


def test_now_is_one_second(shell):
    shell.ok("delete", "pod/web-1", "--now", "--no-wait")
    assert shell.registry.get(Pod, "default", "web-1").metadata.deletion_grace_period_seconds == 1


def test_force_forgets_the_pod(shell):
    result = shell.run("delete", "pod", "web-1", "--force", "--grace-period=0")
    assert (result.exit_code, result.stdout) == (0, 'pod "web-1" force deleted\n')
    assert result.stderr.startswith("warning: --force does not wait")
    assert not exists(shell, Pod, "web-1")


def test_a_timeout_says_what_is_left(shell):
    errors = shell.fails("delete", "pods", "web-1", "web-2", "--timeout=5s")
    assert errors == "error: wait for deletion of pod/web-1, pod/web-2: still there after 5 s\n"


def test_another_pod_of_the_same_name_is_not_waited_for(shell):
    def replaced() -> None:
        shell.registry.delete_many([shell.registry.get(Pod, "default", "web-1")], grace_seconds=0)
        shell.add(pod("web-1"))

    shell.clock.at(shell.clock.monotonic() + 3, replaced)
    shell.ok("delete", "pod/web-1", "--timeout=1m")


def test_by_label_by_all_and_by_manifest(shell):
    shown = shell.ok("delete", "pods", "-l", "app=web", "--no-wait", "-o", "name")
    assert shown == "pod/web-1\npod/web-2\n"
    assert shell.ok("delete", "rc", "--all") == 'replicationcontroller "web" deleted\n'
    manifest = "apiVersion: v1\nkind: Pod\nmetadata: {name: waits}\nspec: {containers: [{name: c, image: 'c:1'}]}\n"
    assert shell.ok("delete", "-f", "-", stdin=manifest) == 'pod "waits" deleted\n'
    assert 'pods "waits" not found' in shell.fails("delete", "-f", "-", stdin=manifest)
    assert shell.ok("delete", "--ignore-not-found", "-f", "-", stdin=manifest) == ""


def test_what_is_there_goes_though_another_is_missing(shell):
    result = shell.run("delete", "rc/nope", "rc/web")
    assert (result.exit_code, result.stdout) == (1, 'replicationcontroller "web" deleted\n')
    assert result.stderr == 'error: replicationcontrollers "nope" not found\n'


def test_dry_run_deletes_nothing(shell):
    before = shell.revision()
    assert shell.ok("delete", "rc/web", "pod/web-1", "--dry-run") == (
        'replicationcontroller "web" deleted (dry run)\npod "web-1" deleted (dry run)\n'
    )
    assert shell.revision() == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("pods",), "objects: missing"),
        ((), "resource type: missing"),
        (("pods", "web-1", "--all"), "--all: expected no names with it"),
        (("pods", "-l", "a", "--all"), "--all: expected no --selector with it"),
        (("pods", "web-1", "--grace-period=0"), "--grace-period=0: only with --force"),
        (("pods", "web-1", "--force", "--grace-period=3"), "--force: expected no grace period above 0"),
        (("pods", "web-1", "--now", "--grace-period=3"), "--now: expected no --grace-period with it"),
        (("pods", "-f", "x.yaml"), "-f: expected no types, names, --selector or --all with it"),
    ],
)
def test_delete_contradictions(shell, args, message):
    before = shell.revision()
    assert shell.fails("delete", *args, code=2).startswith(f"error: {message}")
    assert shell.revision() == before


def adopt(shell: Shell, *names: str) -> ReplicationController:
    controller = shell.registry.get(ReplicationController, "default", "web")
    for name in names:
        live = shell.registry.get(Pod, "default", name)
        reference = replace(owner(controller), block_owner_deletion=True)
        shell.registry.update(with_meta(live, owner_references=(reference,)))
    return controller


def scheduler_works(shell: Shell) -> None:
    """Begin to sync the scheduler's loops once a second."""
    scheduler = Scheduler(shell.store, shell.clock)

    def sync() -> None:
        scheduler.drain()
        scheduler.sync(ReplicationLoop, GarbageLoop, NamespacesLoop)
        shell.clock.at(shell.clock.monotonic() + 1, sync)

    shell.clock.at(shell.clock.monotonic() + 1, sync)


def owned(shell: Shell) -> str:
    """The pods: whose each is, and whether it ends."""
    return " ".join(
        f"{p.metadata.name}:{(controller_of(p) or p.metadata).name if controller_of(p) else 'nobody'}"
        f"{'(ends)' if p.metadata.deletion_timestamp else ''}"
        for p in shell.registry.list(Pod).items
    )


def test_a_controllers_pods_go_after_it(shell):
    adopt(shell, "web-1", "web-2")
    shell.ok("delete", "rc/web")
    assert owned(shell) == "waits:nobody web-1:web web-2:web"
    scheduler_works(shell)
    shell.clock.wait(shell.session().stop, 2)
    assert owned(shell) == "waits:nobody web-1:web(ends) web-2:web(ends)"


def test_orphaned_pods_stay(shell):
    adopt(shell, "web-1", "web-2")
    scheduler_works(shell)
    assert shell.ok("delete", "rc/web", "--cascade=orphan") == 'replicationcontroller "web" deleted\n'
    assert not exists(shell, ReplicationController, "web")
    assert owned(shell) == "waits:nobody web-1:nobody web-2:nobody"


def test_in_the_foreground_the_pods_go_first(shell):
    adopt(shell, "web-1", "web-2")
    scheduler_works(shell)
    agent_ends(shell, "web-1", after=5)
    agent_ends(shell, "web-2", after=9)
    begin = shell.clock.monotonic()
    shell.ok("delete", "rc/web", "--cascade=foreground")
    assert 9 <= shell.clock.monotonic() - begin < 13
    assert owned(shell) == "waits:nobody"


def test_a_namespace_goes_with_all_that_is_in_it(shell):
    shell.add(Namespace(metadata=ObjectMeta(name="shop")))
    service = Service(metadata=ObjectMeta(name="s", namespace="shop"), spec=ServiceSpec(ports=(ServicePort(port=80),)))
    shell.add(service, pod("p", node="", namespace="shop"))
    scheduler_works(shell)
    assert lines(shell.ok("delete", "ns", "shop")) == ['namespace "shop" deleted']
    assert not exists(shell, Namespace, "shop", "")
    assert shell.registry.list(Service, "shop").items == shell.registry.list(Pod, "shop").items == ()
    assert exists(shell, Pod, "web-1")


def test_a_namespace_that_ends_shows_it_and_takes_nothing_in(shell):
    shell.add(Namespace(metadata=ObjectMeta(name="shop")))
    shell.ok("delete", "ns", "shop", "--no-wait")
    assert "Terminating" in shell.ok("get", "ns", "shop")
    manifest = "{apiVersion: v1, kind: Pod, metadata: {name: a}, spec: {containers: [{name: a, image: i}]}}"
    error = shell.fails("create", "-f", "-", "-n", "shop", stdin=manifest)
    assert 'namespace "shop" is being deleted' in error


def test_the_default_namespace_stays(shell):
    assert "it is always there" in shell.fails("delete", "ns", "default")
    assert exists(shell, ReplicationController, "web")


# --- scale ------------------------------------------------------------------------------


def replicas(shell: Shell) -> int:
    return shell.registry.get(ReplicationController, "default", "web").spec.replicas


def test_scale(shell):
    assert shell.ok("scale", "rc/web", "--replicas=8") == "replicationcontroller/web scaled\n"
    assert replicas(shell) == 8
    shell.ok("scale", "rc", "web", "--replicas", "0")
    assert replicas(shell) == 0


def test_scale_with_a_precondition(shell):
    shell.ok("scale", "rc/web", "--current-replicas=4", "--replicas=5")
    errors = shell.fails("scale", "rc/web", "--current-replicas=4", "--replicas=6")
    assert errors == "error: scale replicationcontroller/web: expected 4 replicas now, got 5\n"
    assert replicas(shell) == 5


def test_scale_dry_run(shell):
    shown = shell.ok("scale", "rc/web", "--replicas=8", "--dry-run")
    assert shown == "replicationcontroller/web scaled (dry run: 4 -> 8)\n"
    assert replicas(shell) == 4


def test_scale_what_is_not_there(shell):
    result = shell.run("scale", "rc/nope", "rc/web", "--replicas=2")
    assert (result.exit_code, result.stdout) == (1, "replicationcontroller/web scaled\n")
    assert result.stderr == 'error: replicationcontrollers "nope" not found\n'
    assert "expected a replicationcontroller" in shell.fails("scale", "pod/web-1", "--replicas=2", code=2)
    assert shell.run("scale", "rc/web", "--replicas=-1").exit_code == 2
    assert shell.run("scale", "rc/web").exit_code == 2


def scheduler_reports(shell: Shell, after: float, ready: int) -> None:
    def report() -> None:
        live = shell.registry.get(ReplicationController, "default", "web")
        status = replace(live.status, replicas=6, ready_replicas=ready, observed_generation=live.metadata.generation)
        shell.registry.update(replace(live, status=status))

    shell.clock.at(shell.clock.monotonic() + after, report)


def test_scale_waits_until_all_are_ready(shell):
    scheduler_reports(shell, 1, ready=2)
    scheduler_reports(shell, 4, ready=6)
    shell.ok("scale", "rc/web", "--replicas=6", "--wait")
    assert 4 <= shell.clock.monotonic() < 5


def test_scale_gives_up_waiting(shell):
    scheduler_reports(shell, 1, ready=2)
    errors = shell.fails("scale", "rc/web", "--replicas=6", "--wait", "--timeout=3s")
    assert errors == ("error: wait for replicationcontroller/web: 2 ready of 6, expected 6, when the time was up\n")


def test_scale_notices_somebody_else(shell):
    def other() -> None:
        live = shell.registry.get(ReplicationController, "default", "web")
        shell.registry.update(replace(live, spec=replace(live.spec, replicas=1)))

    shell.clock.at(1, other)
    errors = shell.fails("scale", "rc/web", "--replicas=6", "--wait")
    assert errors == "error: wait for replicationcontroller/web: scaled to 1 by someone else\n"


# --- label ------------------------------------------------------------------------------


def labels(shell: Shell, name: str = "web-1") -> dict[str, str]:
    return shell.registry.get(Pod, "default", name).metadata.labels


def test_label_set_change_remove(shell):
    assert shell.ok("label", "pods", "web-1", "tier=front", "x.io/y=1") == "pod/web-1 labeled\n"
    assert labels(shell) == {"app": "web", "tier": "front", "x.io/y": "1"}
    errors = shell.fails("label", "pod/web-1", "tier=back")
    assert errors == "error: label pod/web-1: it has tier=front already; --overwrite changes it\n"
    assert shell.ok("label", "pod/web-1", "tier=back", "--overwrite") == "pod/web-1 labeled\n"
    assert shell.ok("label", "pod/web-1", "tier-", "x.io/y-") == "pod/web-1 unlabeled\n"
    assert labels(shell) == {"app": "web"}
    before = shell.revision()
    assert shell.ok("label", "pod/web-1", "app=web", "none-") == "pod/web-1 not labeled\n"
    assert shell.revision() == before


def test_label_many(shell):
    assert shell.ok("label", "pods", "-l", "app=web", "v=1") == "pod/web-1 labeled\npod/web-2 labeled\n"
    assert len(lines(shell.ok("label", "pods", "--all", "w=1"))) == 3
    result = shell.run("label", "pods", "web-1", "nope", "z=1")
    assert (result.exit_code, result.stdout) == (1, "pod/web-1 labeled\n")


def test_label_list_and_dry_run(shell):
    before = shell.revision()
    assert shell.ok("label", "pod/web-1", "--list") == "Labels of pod/web-1:\n  app=web\n"
    assert shell.ok("label", "pod/web-1", "a=b", "--dry-run") == "pod/web-1 labeled (dry run)\n"
    assert shell.revision() == before


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("pods", "web-1"), "label: missing"),
        (("pods", "a=b"), "objects: missing"),
        (("pods", "web-1", "-a=b"), "No such option"),
        (("pods", "web-1", "a b=c"), 'label "a b=c": expected a key of letters'),
        (("pods", "web-1", "a=b c"), 'label "a=b c": expected a value of letters'),
        (("pods", "web-1", "a=1", "a=2"), 'label "a": given twice'),
        (("pods", "web-1", "a=1", "a-"), 'label "a": expected to set it or to remove it, got both'),
        (("pods", "web-1", "a=1", "web-2"), 'argument "web-2": expected KEY=VALUE or KEY-'),
        (("pods", "web-1", "a=1", "--all"), "--all: expected no names with it"),
    ],
)
def test_label_wrong_usage(shell, args, message):
    assert message in shell.fails("label", *args, code=2)
