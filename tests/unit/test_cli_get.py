from __future__ import annotations

import json
from threading import Thread

import pytest
import yaml
from cli_shell import Shell, ago, lines, pod, rc, with_meta
from click.testing import CliRunner
from msgspec.structs import replace

from podlane.api.selectors import parse as parse_selector
from podlane.api.types import Event, Lease, LeaseSpec, Namespace, Node, ObjectMeta, ObjectReference, Pod
from podlane.cli.main import cli
from podlane.cli.resources import parse
from podlane.cli.watch import follow
from podlane.errors import StoreUnavailable
from podlane.runtime.clock import FakeClock, SystemClock

pytestmark = pytest.mark.unit


@pytest.fixture
def shell() -> Shell:
    shell = Shell()
    shell.add(
        Namespace(metadata=ObjectMeta(name="shop")),
        pod("web-2"),
        pod("web-1"),
        pod("db", labels={"app": "db", "tier": "back"}),
        pod("else", namespace="shop"),
        rc(),
    )
    shell.clock.advance(65)
    return shell


def test_pods_of_the_namespace_by_name(shell):
    assert shell.ok("get", "pods") == (
        "NAME    READY   STATUS    RESTARTS   AGE\n"
        "db      1/1     Running   0          65s\n"
        "web-1   1/1     Running   0          65s\n"
        "web-2   1/1     Running   0          65s\n"
    )


def test_other_namespaces(shell):
    assert "else" in shell.ok("get", "pods", "-n", "shop")
    assert "else" in shell.ok("-n", "shop", "get", "pods")
    assert "else" in shell.ok("get", "pods", env={"PODLANE_NAMESPACE": "shop"})
    everywhere = lines(shell.ok("get", "po", "-A"))
    assert everywhere[0].startswith("NAMESPACE   NAME ")
    assert everywhere[-1].startswith("shop        else ")


def test_a_selector(shell):
    assert shell.ok("get", "pods", "-l", "app in (db),tier", "-o", "name") == "pod/db\n"
    assert shell.ok("get", "pods", "-l", "app!=db", "--no-headers", "-o", "name") == "pod/web-1\npod/web-2\n"
    assert 'parse selector "app in"' in shell.fails("get", "pods", "-l", "app in", code=2)


def test_several_kinds_are_told_apart_by_prefix(shell):
    assert shell.ok("get", "rc,pods", "-l", "tier") == (
        "NAME     READY   STATUS    RESTARTS   AGE\npod/db   1/1     Running   0          65s\n"
    )
    assert shell.ok("get", "rc/web", "pod/web-1") == (
        "NAME                        DESIRED   CURRENT   READY   AGE\n"
        "replicationcontroller/web   4         0         0       65s\n"
        "\n"
        "NAME        READY   STATUS    RESTARTS   AGE\n"
        "pod/web-1   1/1     Running   0          65s\n"
    )


def test_one_by_name_is_the_object_several_are_a_list(shell):
    assert json.loads(shell.ok("get", "pod", "web-1", "-o", "json"))["kind"] == "Pod"
    both = yaml.safe_load(shell.ok("get", "pods", "web-1", "web-2", "-oyaml"))
    assert (both["kind"], [item["metadata"]["name"] for item in both["items"]]) == ("List", ["web-1", "web-2"])
    assert json.loads(shell.ok("get", "svc", "-o=json"))["items"] == []


def test_yaml_can_be_applied_again(shell):
    text = shell.ok("get", "rc/web", "-o", "yaml")
    assert shell.ok("apply", "-f", "-", stdin=text) == "replicationcontroller/web configured\n"
    assert shell.ok("apply", "-f", "-", stdin=text) == "replicationcontroller/web unchanged\n"


def test_what_is_there_is_shown_and_what_is_missing_said(shell):
    result = shell.run("get", "pods", "web-1", "nope", "neither", "-o", "name")
    assert result.exit_code == 1
    assert result.stdout == "pod/web-1\n"
    assert result.stderr == 'error: pods "nope" not found\nerror: pods "neither" not found\n'
    assert shell.ok("get", "pods", "web-1", "nope", "--ignore-not-found", "-o", "name") == "pod/web-1\n"


def test_nothing_there(shell):
    for args, message in [
        (("get", "svc"), "No resources found in default namespace.\n"),
        (("get", "svc", "-A"), "No resources found\n"),
        (("get", "nodes"), "No resources found\n"),
    ]:
        result = shell.run(*args)
        assert (result.exit_code, result.stdout, result.stderr) == (0, "", message)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (("get",), "resource type: missing"),
        (("get", "pods", "web-1", "-A"), "--all-namespaces: expected no names with it"),
        (("get", "pods", "web-1", "-l", "a"), "--selector: expected no names with it"),
        (("get", "pods", "-n", "Not/One"), "--namespace: expected a DNS label"),
    ],
)
def test_wrong_usage(shell, args, message):
    assert shell.fails(*args, code=2).startswith(f"error: {message}")


def test_kinds_without_a_namespace_ignore_it(shell):
    shell.add(Node(metadata=ObjectMeta(name="node1")))
    assert "node1" in shell.ok("get", "nodes", "-n", "shop")
    assert lines(shell.ok("get", "no", "-A"))[0].startswith("NAME ")
    assert "shop" in shell.ok("get", "ns", "shop", "-A")


def test_leases_are_in_their_namespace(shell):
    lease = Lease(metadata=ObjectMeta(name="node1", namespace="kube-node-lease"), spec=LeaseSpec(holder_identity="n"))
    shell.add(lease)
    assert "node1" in shell.ok("get", "leases", "-n", "kube-node-lease")


def test_events_are_in_order_of_time(shell):
    for name, seconds in [("a", 30), ("b", 90), ("c", 60)]:
        shell.add(
            Event(
                metadata=ObjectMeta(name=name, namespace="default"),
                involved_object=ObjectReference(kind="Pod", name="web-1"),
                reason=name.upper(),
                last_timestamp=ago(seconds=seconds),
            )
        )
    assert [line.split()[2] for line in lines(shell.ok("get", "ev", "--no-headers"))] == ["B", "C", "A"]


def test_a_store_that_does_not_answer_is_one_line(shell):
    shell.store.faults.set_down(True)
    errors = shell.fails("get", "pods")
    assert len(lines(errors)) == 1
    assert errors.startswith("error: ")


# --- watching ---------------------------------------------------------------------------


def names(batch) -> list[str]:
    return [obj.metadata.name for obj in batch]


def live_shell() -> Shell:
    """With the real clock: watching is done by threads."""
    shell = Shell(SystemClock())
    shell.add(pod("web-1"), pod("web-2"), rc())
    return shell


def test_a_watch_shows_all_then_what_changes():
    shell = live_shell()
    session = shell.session()
    watch = follow(session, parse(["pods"]), namespace="default", selector=parse_selector("app=web"))
    assert names(next(watch)) == ["web-1", "web-2"]
    shell.add(pod("other", labels={"app": "x"}), pod("web-3"))
    assert names(next(watch)) == ["web-3"]
    one = shell.registry.get(Pod, "default", "web-1")
    shell.registry.update(replace(one, status=replace(one.status, phase="Failed")))
    assert next(watch)[0].status.phase == "Failed"
    # it no longer matches: shown once more, as one that is deleted
    shell.registry.update(with_meta(shell.registry.get(Pod, "default", "web-3"), labels={"app": "y"}))
    assert names(next(watch)) == ["web-3"]
    shell.registry.delete(Pod, "default", "web-2", grace_seconds=0)
    assert names(next(watch)) == ["web-2"]
    session.stop.set()
    assert list(watch) == []


def test_a_watch_of_one_name():
    shell = live_shell()
    watch = follow(shell.session(), parse(["pod/web-2"]), namespace="default", selector=None)
    assert names(next(watch)) == ["web-2"]
    watch.close()


@pytest.mark.parametrize(("output", "first"), [("table", "NAME"), ("name", "pod/web-1")])
def test_a_watch_prints_rows_below_one_header(output, first):
    session = live_shell().session()
    session.stop.set()
    result = CliRunner().invoke(cli, ["get", "pods", "-w", "-o", output], obj=session)
    assert result.exit_code == 0
    assert lines(result.stdout)[0].split()[0] == first
    assert [line.split()[0].removeprefix("pod/") for line in lines(result.stdout)][-2:] == ["web-1", "web-2"]


def test_a_watch_without_a_store_ends():
    clock = FakeClock()
    shell = Shell(clock)
    shell.store.faults.set_down(True)
    clock_mover = Thread(target=lambda: (clock.await_sleepers(2), clock.advance(6)))
    clock_mover.start()
    with pytest.raises(StoreUnavailable, match="no answer from the store within 5 s"):
        next(follow(shell.session(), parse(["pods"]), namespace=None, selector=None))
    clock_mover.join()
