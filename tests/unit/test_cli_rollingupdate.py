"""rolling-update: the steps as a table, and whole updates on a cluster with the real replication loops."""

from __future__ import annotations

import math

import pytest
from cli_shell import Shell, lines, waiting
from cli_shell import rc as controller
from msgspec.structs import replace
from scheduler_world import Scheduler

from podlane.api.meta import controller_of, is_pod_active
from podlane.api.types import Condition, Pod, ReplicationController
from podlane.cli.rollout import Limits, Side, foreseen, step
from podlane.errors import StoreUnavailable, UsageError
from podlane.runtime.clock import ScriptedClock
from scheduler.garbage_loop import GarbageLoop
from scheduler.replication_loop import ReplicationLoop

pytestmark = pytest.mark.unit

# --- the steps ----------------------------------------------------------------------------


def steps(growing: int, shrinking: int, target: int, surge: str = "1", unavailable: str = "0") -> str:
    """`+1 -3 …`: what each side is set to, in turn."""
    limits = Limits.of(target, shrinking, surge, unavailable)
    return " ".join(
        f"+{s.grow}" if s.grow is not None else f"-{s.shrink}" if s.shrink is not None else "done" if s.done else "?"
        for s in foreseen(growing, shrinking, limits)
    )


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ((0, 3, 3), "+1 -2 +2 -1 +3 -0 done"),
        ((2, 1, 3), "+3 -0 done"),  # taken up where it was broken off
        ((0, 3, 3, "0", "1"), "-2 +1 -1 +2 -0 +3 done"),
        ((0, 4, 4, "50%", "25%"), "+2 -1 +4 -0 done"),
        ((0, 4, 4, "100%"), "+4 -0 done"),
        ((0, 2, 5), "+4 -0 +5 done"),
        ((0, 5, 2), "-2 +1 -1 +2 -0 done"),
        ((0, 0, 2), "+2 done"),
        ((0, 3, 0), "-0 done"),
        ((0, 1, 1, "10%", "10%"), "+1 -0 done"),
    ],
)
def test_steps(arguments, expected):
    assert steps(*arguments) == expected


@pytest.mark.parametrize(
    ("growing", "shrinking", "expected"),
    [
        (Side(1, 1, 0, True), Side(3, 3, 3, True), "wait"),  # until it is available
        (Side(1, 1, 1, True), Side(3, 3, 3, True), "-2"),
        (Side(1, 1, 1, True), Side(3, 3, 3, False), "wait"),  # its status is of before
        (Side(1, 1, 0, True), Side(3, 3, 2, True), "-2"),  # who is not available is not missed
        (Side(3, 3, 2, True), Side(0, 0, 0, True), "wait"),
    ],
)
def test_a_step_waits_for_what_it_rests_on(growing, shrinking, expected):
    found = step(growing, shrinking, Limits.of(3, 3, "1", "0"))
    assert (f"-{found.shrink}" if found.shrink is not None else "wait") == expected


@pytest.mark.parametrize(("surge", "unavailable"), [("0", "0"), ("x", "0"), ("1", "101%"), ("1", "-1"), ("", "0")])
def test_limits_that_make_no_sense(surge, unavailable):
    with pytest.raises(UsageError, match=r"^--max-"):
        Limits.of(3, 3, surge, unavailable)


# --- whole updates --------------------------------------------------------------------------


class Cluster(Shell):
    """A shell beside the real replication and garbage loops, and nodes that run what they get within a second.

    Pods with the image "bad" do not start. `fewest` and `most` are the numbers of ready and of active pods met.
    """

    def __init__(self) -> None:
        super().__init__(ScriptedClock())
        self.add(controller("web", 3))
        self.scheduler = Scheduler(self.store, self.clock)
        self.store = Interrupted(self.store)
        self.fewest, self.most = 99, 0
        self.cured = False
        for _ in range(4):
            self.work()
        self.fewest, self.most = 99, 0
        self.keep_working()

    def keep_working(self) -> None:
        def again() -> None:
            self.work()
            self.keep_working()

        self.clock.at(self.clock.monotonic() + 0.5, again)

    def work(self) -> None:
        self.scheduler.drain()
        self.scheduler.sync(ReplicationLoop, GarbageLoop)
        for pod in self.pods():
            if pod.metadata.deletion_timestamp is not None:
                self.registry.delete_many([pod], grace_seconds=0)
            elif not pod.spec.node_name:
                self.registry.update(replace(pod, spec=replace(pod.spec, node_name="n1")))
            else:
                self.report(pod)
        active = [p for p in self.pods() if is_pod_active(p)]
        self.fewest = min(self.fewest, sum(bool(p.status.conditions) for p in active))
        self.most = max(self.most, len(active))

    def report(self, pod: Pod) -> None:
        if pod.spec.containers[0].image == "bad" and not self.cured:
            status = replace(pod.status, container_statuses=(waiting("ImagePullBackOff"),))
        else:
            ready = Condition(type="Ready", status="True")
            status = replace(pod.status, phase="Running", conditions=(ready,), container_statuses=())
        self.registry.update(replace(pod, status=status))

    def pods(self) -> list[Pod]:
        return list(self.registry.list(Pod).items)

    def images(self) -> str:
        return " ".join(sorted(p.spec.containers[0].image for p in self.pods() if is_pod_active(p)))

    def controllers(self) -> str:
        found = self.registry.list(ReplicationController).items
        return " ".join(f"{rc.metadata.name}={rc.spec.replicas}" for rc in found)

    def uids(self) -> set[str]:
        return {p.metadata.uid for p in self.pods()}


@pytest.fixture
def cluster() -> Cluster:
    return Cluster()


MANIFEST = """
apiVersion: v1
kind: ReplicationController
metadata: {name: web-v2}
spec:
  selector: {app: web, version: v2}
  template:
    metadata: {labels: {app: web, version: v2}}
    spec: {containers: [{name: web, image: IMAGE}]}
"""
V1 = """
apiVersion: v1
kind: ReplicationController
metadata: {name: web-v1}
spec:
  replicas: 3
  selector: {app: web, version: v1}
  template:
    metadata: {labels: {app: web, version: v1}}
    spec: {containers: [{name: web, image: old}]}
"""


@pytest.fixture
def versions(cluster) -> Cluster:
    """A controller whose pods say which version they are."""
    cluster.registry.delete(ReplicationController, "default", "web")
    cluster.ok("create", "-f", "-", stdin=V1)
    for _ in range(4):
        cluster.work()
    cluster.fewest, cluster.most = 99, 0
    return cluster


class TestImage:
    def test_one_at_a_time_and_the_name_stays(self, cluster):
        result = cluster.run("rolling-update", "web", "--image=new")
        assert result.exit_code == 0, result.output
        new = lines(result.stderr)[0].removeprefix("Created ")
        assert lines(result.stderr) == [
            f"Created {new}",
            f"Scaling up {new} from 0 to 3, scaling down web from 3 to 0 (keep 3 pods available, don't exceed 4 pods)",
            f"Scaling {new} up to 1",
            "Scaling web down to 2",
            f"Scaling {new} up to 2",
            "Scaling web down to 1",
            f"Scaling {new} up to 3",
            "Scaling web down to 0",
            f"Update succeeded. web takes over from {new}",
        ]
        assert result.stdout == 'replicationcontroller/web rolling updated to "web"\n'
        assert cluster.controllers() == "web=3"
        assert (cluster.fewest, cluster.most) == (3, 4)
        before = cluster.uids()
        for _ in range(3):
            cluster.work()
        assert cluster.uids() == before
        assert cluster.images() == "new new new"
        (web,) = cluster.registry.list(ReplicationController).items
        assert web.metadata.annotations == {}
        assert {controller_of(p).uid for p in cluster.pods()} == {web.metadata.uid}

    def test_again_with_the_next_image_and_a_name_of_its_own(self, cluster):
        cluster.ok("rolling-update", "web", "--image=new")
        assert cluster.ok("rolling-update", "rc/web", "web-2", "--image=newer", "-o", "name") == (
            "replicationcontroller/web-2\n"
        )
        assert cluster.controllers() == "web-2=3"
        assert cluster.images() == "newer newer newer"

    def test_dry_run_says_the_steps(self, cluster):
        before = cluster.revision()
        shown = lines(cluster.ok("rolling-update", "web", "web-2", "--image=new", "--max-surge=3", "--dry-run"))
        assert shown == [
            f"label pods of replicationcontroller/web {shown[0].split()[-3]} (dry run)",
            "create replicationcontroller/web-2 (dry run)",
            "scale replicationcontroller/web-2 3 (dry run)",
            "scale replicationcontroller/web 0 (dry run)",
            "delete replicationcontroller/web (dry run)",
        ]
        assert cluster.revision() == before

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "-f or --image: expected one of them: no update of web is under way"),
            (["--rollback"], "--rollback: no update of web is under way"),
            (["--image=web:1"], "--image: expected another than the present one"),
            (["--image=x", "--container=db"], "--container: expected one of web, got"),
            (["--image=x", "-f", "x.yaml"], "-f: expected no --image with it"),
            (["web", "--image=x"], "NEW: expected another name than OLD"),
            (["Web", "--image=x"], "NEW: "),
            (["--image=x", "--max-surge=0"], "--max-unavailable: expected more than 0"),
        ],
    )
    def test_wrong_usage_changes_nothing(self, cluster, arguments, message):
        before = cluster.revision()
        assert message in cluster.fails("rolling-update", "web", *arguments, code=2)
        assert cluster.revision() == before

    def test_who_is_not_there(self, cluster):
        assert 'replicationcontrollers "nope" not found' in cluster.fails("rolling-update", "nope", "--image=x")


class TestFailure:
    def paused(self, cluster) -> str:
        return cluster.fails("rolling-update", "web", "--image=bad")

    def test_it_pauses_and_says_which_pod_and_why(self, cluster):
        errors = self.paused(cluster)
        assert "paused with 0 of 3 pods of web-" in errors
        assert "on n1: ImagePullBackOff" in errors
        assert cluster.images() == "bad web:1 web:1 web:1"
        assert cluster.fewest == 3

    def test_the_next_run_goes_on_when_the_cause_is_gone(self, cluster):
        self.paused(cluster)
        cluster.cured = True
        cluster.ok("rolling-update", "web")
        assert (cluster.controllers(), cluster.images()) == ("web=3", "bad bad bad")

    def test_another_image_is_refused_until_it_is_taken_back(self, cluster):
        self.paused(cluster)
        assert "it is being updated to web-" in cluster.fails("rolling-update", "web", "--image=other", code=2)
        assert cluster.ok("rolling-update", "web", "--rollback") == "replicationcontroller/web rolled back\n"
        assert (cluster.controllers(), cluster.images()) == ("web=3", "web:1 web:1 web:1")
        assert cluster.fewest == 3
        cluster.ok("rolling-update", "web", "--image=other")
        assert cluster.images() == "other other other"

    def test_a_step_that_takes_too_long_pauses(self, cluster):
        errors = cluster.fails("rolling-update", "web", "--image=bad", "--timeout=5s")
        assert "ImagePullBackOff" in errors


class TestManifest:
    def test_as_many_as_there_were_when_it_does_not_say(self, versions):
        manifest = MANIFEST.replace("IMAGE", "new")
        result = versions.ok(
            "rolling-update", "web-v1", "-f", "-", "--max-unavailable=1", "--max-surge=0", stdin=manifest
        )
        assert result == 'replicationcontroller/web-v1 rolling updated to "web-v2"\n'
        assert (versions.controllers(), versions.images()) == ("web-v2=3", "new new new")
        assert (versions.fewest, versions.most) == (2, 3)

    def test_back_from_the_middle(self, versions):
        manifest = MANIFEST.replace("IMAGE", "bad")
        versions.fails("rolling-update", "web-v1", "-f", "-", stdin=manifest)
        versions.ok("rolling-update", "web-v1", "-f", "-", "--rollback", stdin=manifest)
        assert (versions.controllers(), versions.images()) == ("web-v1=3", "old old old")

    def test_pods_that_cannot_be_told_apart(self, versions):
        manifest = MANIFEST.replace("IMAGE", "new").replace(", version: v2", "")
        errors = versions.fails("rolling-update", "web-v1", "-f", "-", stdin=manifest, code=2)
        assert "spec.selector: expected a label whose value differs" in errors

    def test_a_controller_of_that_name_that_is_no_update(self, versions):
        manifest = MANIFEST.replace("IMAGE", "new")
        versions.ok("create", "-f", "-", stdin=manifest)
        assert "there is one, of no update" in versions.fails(
            "rolling-update", "web-v1", "-f", "-", stdin=manifest, code=2
        )


@pytest.mark.parametrize("which", ["image", "manifest"])
def test_broken_off_after_any_write_it_is_finished_by_the_next_run(which):
    """Interrupted after its first write, its second, …: never fewer ready, and in the end exact."""
    for writes in range(60):
        cluster = Cluster()
        arguments, stdin = ["rolling-update", "web", "--image=new"], None
        if which == "manifest":
            cluster.registry.modify(ReplicationController, "default", "web", _version_one)
            stdin = MANIFEST.replace("IMAGE", "new")
            for pod in cluster.pods():
                labels = {**pod.metadata.labels, "version": "v1"}
                cluster.registry.update(replace(pod, metadata=replace(pod.metadata, labels=labels)))
            cluster.work()
            arguments = ["rolling-update", "web", "-f", "-"]
        cluster.store.left = writes
        finished = cluster.run(*arguments, stdin=stdin).exit_code == 0
        cluster.store.left = math.inf
        if finished:
            assert writes >= 10
            return
        result = cluster.run(*arguments, stdin=stdin)
        # cut off after the very last write there is nothing left to do
        over = "expected another than the present one" in result.stderr or "not found" in result.stderr
        assert result.exit_code == 0 or over, result.output
        for _ in range(4):
            cluster.work()
        assert cluster.images() == "new new new"
        assert cluster.controllers() == ("web=3" if which == "image" else "web-v2=3")
        assert not any(rc.metadata.annotations for rc in cluster.registry.list(ReplicationController).items)
        assert cluster.fewest == 3
        assert cluster.most <= 4
    pytest.fail("no number of writes was enough")


def _version_one(rc: ReplicationController) -> ReplicationController:
    labels = {"app": "web", "version": "v1"}
    template = replace(rc.spec.template, metadata=replace(rc.spec.template.metadata, labels=labels))
    return replace(rc, spec=replace(rc.spec, selector=labels, template=template))


class Interrupted:
    """A command's store, which is gone after so many writes; closing it closes nobody else's."""

    left = math.inf

    def __init__(self, store) -> None:
        self._store = store

    def __getattr__(self, name):
        return getattr(self._store, name)

    def close(self) -> None:
        pass

    def txn(self, *args, **options):
        if not self.left:
            raise StoreUnavailable("write: interrupted")
        self.left -= 1
        return self._store.txn(*args, **options)
