"""Whatever happens, in whatever order: pods end up as they should, and on the way no rule of a pod's life is broken.

The engine itself watches the rules: each start is checked when it happens.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
from agent_objects import IMAGE, Host, container, deleted, pod
from hypothesis import given, settings
from hypothesis import strategies as st

from podlane.api.types import Container, ExecAction, Lifecycle, LifecycleHandler, Pod, Probe, SleepAction
from podlane.errors import PodlaneError
from podlane.runtime.clock import FakeClock
from scheduler.agent import containers as c
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.history import attempts, is_over, is_sidecar, latest_of
from scheduler.agent.probestate import Target
from scheduler.agent.runtime import ExecResult, Record, RuntimeRefused

pytestmark = pytest.mark.unit

HOOKS = Lifecycle(
    post_start=LifecycleHandler(exec=ExecAction(command=("hook",))),
    pre_stop=LifecycleHandler(sleep=SleepAction(seconds=3)),
)
INIT = (container("first"), container("proxy", restart_policy="Always"), container("second"))
PODS = (
    pod("a", container("web", lifecycle=HOOKS), container("log"), init_containers=INIT),
    pod("b", container("web"), init_containers=INIT, restart_policy="OnFailure"),
    pod("c", container("web"), init_containers=INIT, restart_policy="Never"),
    pod("d", container("web", lifecycle=HOOKS, image_pull_policy="Always"), container("log")),
)
NAMES = [*(ct.name for ct in INIT), "web", "log", c.INFRA]


class Watchful(FakeRuntime):
    """Refuses `faults` calls to come, and never lets a rule be broken."""

    def __init__(self, clock: FakeClock) -> None:
        super().__init__(clock)
        self.registry.add(IMAGE)
        self.faults = 0
        self.specs = {p.metadata.uid: p for p in PODS}

    def start(self, container: str) -> None:
        self._maybe_fail("start")
        record = self._find(container).record
        if c.container_name(record) != c.INFRA:
            self._check_turn(record)
        super().start(container)

    def create(self, config: object) -> str:
        self._maybe_fail("create")
        return super().create(config)  # type: ignore[arg-type] # handed through

    def signal(self, container: str, name: str) -> None:
        self._maybe_fail("signal")
        super().signal(container, name)

    def remove(self, container: str) -> None:
        self._maybe_fail("remove")
        super().remove(container)

    def _maybe_fail(self, action: str) -> None:
        if self.faults:
            self.faults -= 1
            raise RuntimeRefused(f"{action} container: no space left on device")

    def _check_turn(self, record: Record) -> None:
        spec, name = self.specs[c.pod_uid(record)], c.container_name(record)
        mine = [r for r in self.list() if c.pod_uid(r) == c.pod_uid(record)]
        assert not any(r.running and c.container_name(r) == name for r in mine), f"a second {name}"
        before = spec.spec.init_containers
        if name in [ct.name for ct in before]:
            before = before[: [ct.name for ct in before].index(name)]
        for ct in before:
            last = next((r for r in attempts(mine, ct.name) if r.joined == record.joined), None)
            assert last is not None, f"{name} before {ct.name}"
            assert is_sidecar(ct) or (last.state == "exited" and last.exit_code == 0), (
                f"{name} before the end of {ct.name}"
            )


operations = st.one_of(
    st.tuples(st.just("sync"), st.integers(0, 12)),
    st.tuples(st.just("interrupt"), st.integers(0, 6)),
    st.tuples(st.just("end"), st.integers(0, 30)),
    st.tuples(st.just("end-init"), st.just(0)),
    st.tuples(st.just("unhealthy"), st.integers(0, 30)),
    st.tuples(st.just("pass"), st.sampled_from([1, 3, 10, 40, 700])),
    st.tuples(st.just("faults"), st.integers(1, 4)),
    st.tuples(st.just("down"), st.just(0)),
    st.tuples(st.just("hooks"), st.integers(0, 1)),
    st.tuples(st.just("image"), st.integers(0, 1)),
    st.tuples(st.just("delete"), st.integers(0, 3)),
    st.tuples(st.just("restart"), st.just(0)),
)


def do(host: Host, engine: Watchful, what: str, number: int) -> None:
    running = [r for r in engine.list() if r.running]
    match what:
        case "sync":
            host.settle(1)
        case "interrupt":  # the agent dies in the middle of its work
            for planned in host.look().pods:
                host.steps.carry_out(replace(planned, steps=planned.steps[:number]))
            restart(host)
        case "restart":
            restart(host)
        case "end" if running:
            engine.end(running[number % len(running)].id, number % 2)
        case "end-init":
            end_init_containers(engine)
        case "unhealthy":
            let_liveness_fail(host, running, number)
        case "pass":
            host.clock.advance(number)
        case "delete":
            uid = PODS[number].metadata.uid
            if uid in host.pods and host.pods[uid].metadata.deletion_timestamp is None:
                host.pods[uid] = deleted(host.pods[uid], number * 5)
        case _:
            trouble(host, engine, what, number)


def trouble(host: Host, engine: Watchful, what: str, number: int) -> None:
    match what:
        case "faults":
            engine.faults = number
        case "down":
            engine.down = True
            with pytest.raises(PodlaneError):
                host.look()
            engine.down = False
        case "hooks":
            engine.execs = lambda _name, _command: ExecResult(number, b"")
        case "image":
            engine.images.pop(IMAGE, None)
            host.memory.forget_images()


def end_init_containers(engine: Watchful) -> None:
    for record in engine.list():
        if record.running and c.container_name(record) in {"first", "second"}:
            engine.end(record.id, 0)


def restart(host: Host) -> None:
    host.report_all()
    host.restart_agent()


def let_liveness_fail(host: Host, running: list[Record], number: int) -> None:
    web = [r for r in running if c.container_name(r) == "web" and c.pod_uid(r) in host.pods]
    for record in web[number % 2 :: 2]:
        obj = host.pods[c.pod_uid(record)]
        target = Target(record.id, obj, obj.spec.containers[0], Probe(), "", kind="liveness")
        host.unhealthy = {**host.unhealthy, record.id: target}


def quiet(host: Host, engine: Watchful) -> None:
    """Nothing bad happens any more, and init containers do their work."""
    engine.faults = 0
    engine.execs = lambda _name, _command: ExecResult(0, b"")
    host.unhealthy = {}
    for _ in range(30):
        host.settle(2)
        end_init_containers(engine)
        host.clock.advance(40)


def is_as_it_should_be(host: Host, obj: Pod) -> bool:
    records = [r for r in host.runtime.list() if c.pod_uid(r) == obj.metadata.uid]
    running = sorted(c.container_name(r) for r in records if r.running)
    has_lost_network = obj.spec.restart_policy == "Never" and c.INFRA not in running
    if has_lost_network or is_over(obj, latest_of(obj, records)):
        return running == []
    kept: list[Container] = [ct for ct in obj.spec.init_containers if is_sidecar(ct)] + list(obj.spec.containers)
    wanted = [ct.name for ct in kept if ct in obj.spec.init_containers or _runs(obj, records, ct)]
    return running == sorted([c.INFRA, *wanted])


def _runs(obj: Pod, records: list[Record], ct: Container) -> bool:
    """What ended for good by its policy does not."""
    last = latest_of(obj, records)[ct.name]
    return not (obj.spec.restart_policy != "Always" and last is not None and last.state == "exited")


@settings(max_examples=60, deadline=None)
@given(operations=st.lists(operations, max_size=25))
def test_random_lives(operations: list[tuple[str, int]]) -> None:
    host = Host(*PODS, engine=Watchful)
    engine = host.runtime
    assert isinstance(engine, Watchful)
    for what, number in operations:
        do(host, engine, what, number)
    to_go = {uid for uid, obj in host.pods.items() if obj.metadata.deletion_timestamp is not None}
    quiet(host, engine)
    assert not to_go & host.pods.keys()
    assert {c.pod_uid(r) for r in engine.list()} <= host.pods.keys()
    for obj in host.pods.values():
        assert is_as_it_should_be(host, obj), (obj.metadata.name, host.all_running(), str(host.look()))
    assert all(not p.acts for p in host.look().pods)
