"""The agent's loop: look at the node, plan, set workers to it, report.

Owns: the order of a sync. Invariants: nothing is done before the first
complete list of bindings; what is being worked on is noted before the engine is
asked, so no plan rests on a look taken in the middle of another plan's steps; a
sync itself changes no container and writes nothing, so it never waits for one
pod's sake; nothing that runs depends on the store: with etcd away pods go on,
and their statuses are written when it is back.

observe (bindings, one list of the engine's containers, images, probes) → plan
(plan.py) → apply (workers, pulls, prober, status writer).
"""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Collection, Mapping
from functools import partial
from pathlib import Path
from typing import Protocol, TypeVar

from podlane.api.meta import is_pod_finished, is_pod_ready, namespaced_name
from podlane.api.types import Node, Pod
from podlane.errors import PodlaneError
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import Repetition, get_logger
from podlane.runtime.runner import Runner
from scheduler.agent import containers as c
from scheduler.agent.actions import Create, Pull, Release, RunHook
from scheduler.agent.downward import NodeFacts
from scheduler.agent.eviction import REASON as EVICTED
from scheduler.agent.gate import Gate
from scheduler.agent.hostports import HostPort, host_ports
from scheduler.agent.lastwords import LastWords
from scheduler.agent.memory import Memory
from scheduler.agent.model import Drain, Observed, Plan, PodPlan
from scheduler.agent.nodenetwork import NodeNetwork
from scheduler.agent.plan import plan, wanted_images, wanted_users
from scheduler.agent.planend import to_drain
from scheduler.agent.podfiles import PodFiles
from scheduler.agent.podnet import PodNet
from scheduler.agent.probes import Prober, Target, checker
from scheduler.agent.references import Known
from scheduler.agent.report import Reporter
from scheduler.agent.runtime import EventStream, Record, Runtime, RuntimeEvent, RuntimeRefused
from scheduler.agent.statuswriter import Outbox, StatusWriter
from scheduler.agent.steps import Events, Steps
from scheduler.agent.storeview import StoreView
from scheduler.agent.workers import MakePool, Workers, threads

WORKERS = max(2, min(6, os.cpu_count() or 1))
"""Pods worked on at once. Starting a sandbox is mostly the engine's computing: more than there are CPUs
brings the last of many pods up no sooner, and the first of them much later.
"""
PULLERS = 10
"""Images fetched at once: one that does not come keeps a thread, but no other image."""
HOOKS = 32
"""Lifecycle hooks carried out at once; a thread is made when it is needed."""
MIN_INTERVAL = 0.1
"""Seconds between syncs, each of which lists the containers; the first of a burst is not delayed."""
ENGINE_BACKOFF = (0.2, 5.0)
"""Seconds before an engine that failed is asked again; one that hung and goes on tells nobody."""
_INFRA_IMAGE_CHECK = 30.0
_RECONNECT = 1.0

S = TypeVar("S", Pull, RunHook)


class Bindings(Protocol):
    """podlane.store.mirror.Mirror[Pod], as far as it is used here."""

    def snapshot(self) -> dict[str, Pod]: ...


class Drains(Protocol):
    """scheduler.agent.drain.Drainer, as far as it is used here."""

    def look(self, pods: Mapping[str, Pod]) -> dict[str, Drain]: ...


class HostPortTable(Protocol):
    """hostports.HostPorts, as far as it is used here."""

    def sync(self, wanted: frozenset[HostPort]) -> float | None: ...


class Agent:
    """Runs what `bindings` says on `runtime`. `on_change` of `bindings` and of `drains` must call `trigger`."""

    def __init__(
        self,
        *,
        node_ip: str,
        runtime: Runtime,
        podnet: PodNet,
        files: PodFiles,
        outbox: Outbox,
        events: Events,
        subnet_file: Path,
        drain_delay: float = 1.0,
        drain_timeout: float = 10.0,
        clock: Clock | None = None,
        check: Callable[[Target], tuple[bool, str]] | None = None,
        pool: MakePool = threads,
    ) -> None:
        self.clock = clock or SystemClock()
        self.runtime = runtime
        self.bindings: Bindings | None = None
        self.drains: Drains | None = None
        self.store_view: StoreView | None = None
        self.host_ports: HostPortTable | None = None
        self.node = NodeFacts((node_ip,))
        self._node_ip = node_ip
        self._files = files
        self._podnet = podnet
        self._drain_delay, self._drain_timeout = drain_delay, drain_timeout
        self._events = events
        self._log = get_logger("agent")
        self.runner = Runner(
            self.sync, name="agent", clock=self.clock, min_interval=MIN_INTERVAL, backoff=ENGINE_BACKOFF
        )
        self.memory = Memory(self.clock)
        self._statuses = StatusWriter(outbox, self.runner.trigger_after, clock=self.clock, pool=pool)
        self._steps = Steps(
            runtime, podnet=podnet, files=files, memory=self.memory, events=events, release=self._statuses.remove
        )
        self._workers: Workers[str] = Workers("worker", WORKERS, self.runner.trigger_after, pool=pool)
        self._pulls: Workers[str] = Workers("pull", PULLERS, self.runner.trigger_after, pool=pool)
        self._hooks: Workers[tuple[str, str]] = Workers("hook", HOOKS, self.runner.trigger_after, pool=pool)
        self.prober = Prober(
            check or checker(runtime),
            on_change=self.trigger,
            on_answer=self._answered,
            clock=self.clock,
            pool=pool,
        )
        self._words = LastWords(runtime, files.paths, self.runner.trigger_after, pool=pool)
        self._reporter = Reporter(
            prober=self.prober,
            words=self._words,
            statuses=self._statuses,
            events=events,
            node_ip=node_ip,
            clock=self.clock,
        )
        self._network = NodeNetwork(
            podnet, subnet_file, look_again=self.runner.trigger_after, clock=self.clock, node_ips=(node_ip,)
        )
        self._evicted: dict[str, tuple[str, str]] = {}
        self._gate = Gate(self._ask_for_node, self.runner.trigger_after, self.clock)
        self.checks_pods = False  # whether somebody says by `node_read` what the Node is
        self._infra_image_due = self.clock.monotonic()
        self._stream: EventStream | None = None
        # what is reported of the node may have to change
        self.on_node_change: Callable[[], None] = lambda: None
        # a pod waits for `node_read`
        self.on_node_asked: Callable[[], None] = lambda: None

    def trigger(self) -> None:
        """Something changed. Cheap, from any thread."""
        self.runner.trigger()

    def busy(self) -> frozenset[str]:
        """UIDs of the pods that are being worked on."""
        return self._workers.busy()

    def evict(self, pod: Pod, message: str) -> None:
        """End a pod for the node's sake, at once and for good; its phase will be Failed. From any thread."""
        self._log.warning("evicted", pod=namespaced_name(pod), why=message)
        self._evicted[pod.metadata.uid] = EVICTED, message
        self.trigger()

    def node_read(self, node: Node, as_of: float) -> bool:
        """What the Node was after `as_of` (monotonic); whether that is waited for. From any thread."""
        waited_for = self._gate.read(node, as_of)
        if waited_for:
            self.trigger()
        return waited_for

    def _ask_for_node(self) -> None:
        self.on_node_asked()

    def network_problem(self) -> str | None:
        """Why no pod can be given a network now; None when it can."""
        return self._network.problem or None

    def network(self) -> tuple[tuple[str, ...], str]:
        """The pod network's subnets here (none if not known) and why it is not usable ("" if it is)."""
        return self._network.subnets, self._network.problem

    def close(self) -> None:
        """Begin nothing more. Pods go on running."""
        self._workers.close()
        self._pulls.close()
        self._hooks.close()
        self._words.close()
        self._statuses.close()

    # --- the sync ------------------------------------------------------------------------

    def sync(self) -> None:
        """Look, plan, set to work. Raises NotReady before the first list, RuntimeUnavailable, PodNetError."""
        assert self.bindings is not None
        assert self.drains is not None
        busy = self._workers.busy()  # before looking: see the module
        pods = self._statuses.newest(self.bindings.snapshot().values())
        before = self.network()
        self._network.look()  # before the containers: see NodeNetwork
        if self.network() != before:
            self.on_node_change()
        self._ensure_infra_image()
        records = self._network.with_addresses(self.runtime.list())
        if self.checks_pods:
            pods = self._gate.look(pods, {c.pod_uid(r) for r in records})
        endings, stops = self.memory.note_endings(_ending(pods, records)), self.memory.stops()
        seen = Observed(
            now=self.clock.now(),
            pods=pods,
            records=records,
            images=self.memory.images(self.runtime, wanted_images(pods.values())),
            failures=self.memory.failures(),
            pulled=self.memory.pulled(),
            endings=endings,
            busy=busy,
            network=self._network.problem,
            addresses=self._network.addresses(records, busy),
            stale=self._network.stale(records),
            files=self._files.paths(),
            known=self.store_view.look(pods, records) if self.store_view is not None else Known(),
            node=self.node,
            users=self.memory.image_users(self.runtime, wanted_users(pods.values())),
            set_up=self.memory.volumes(),
            stops=stops,
            hooks=self.memory.hooks(),
            started=self.prober.started(),
            unhealthy=self.prober.unhealthy(),
            drains=self.drains.look(to_drain(pods, records, endings, stops)),
            drain_delay=self._drain_delay,
            drain_timeout=self._drain_timeout,
            evicted={**self._evicted, **self._gate.rejected()},
        )
        planned = plan(seen)
        if self.store_view is not None:
            self.store_view.note(planned)
        self._apply(planned)
        self._write_host_ports(pods, records)
        self._reporter.report(seen, planned, self._workers.busy())
        self._forget(seen)
        self._network.sweep(records)
        if planned.wake_at is not None:
            self.runner.trigger_after(max(0.0, planned.wake_at - self.clock.now()))

    def _write_host_ports(self, pods: Mapping[str, Pod], records: Collection[Record]) -> None:
        if self.host_ports is None:
            return
        ips = {c.pod_uid(r): r.ips for r in records if r.running and c.container_name(r) == c.INFRA}
        again = self.host_ports.sync(host_ports(pods.values(), ips))
        if again is not None:
            self.runner.trigger_after(again)

    def _apply(self, planned: Plan) -> None:
        for pod in planned.pods:
            if pod.bucket == "busy":
                continue
            for pull in pod.pulls:
                self._pulls.submit(pull.image, _beside(self._steps.pull, pod, pull))
            for hook in pod.hooks:
                if self.memory.hook_begins(hook.id, hook.kind):
                    self._hooks.submit((hook.id, hook.kind), _beside(self._steps.run_hook, pod, hook))
            if pod.steps:
                self._log.debug("plan", bucket=pod.bucket, pod=pod.ref, steps=[str(step) for step in pod.steps])
                waits = any(isinstance(step, Release) for step in pod.steps)
                for made in (step.config.labels for step in pod.steps if isinstance(step, Create)):
                    if ip := made.get(c.POD_IP):
                        self._network.reserve(pod.uid, ip)
                self._workers.submit(pod.uid, partial(self._steps.carry_out, pod), waits=waits)
        if any(pod.acts for pod in planned.pods):
            self._log.info("sync complete", summary=planned.summary(), why=planned.why())

    def _forget(self, seen: Observed) -> None:
        self.memory.keep(seen.pods.keys(), {r.id for r in seen.records})
        for uid in seen.evicted:
            if uid not in seen.pods or is_pod_finished(seen.pods[uid]):
                self._evicted.pop(uid, None)
        self._remove_files(seen)

    def _remove_files(self, seen: Observed) -> None:
        """Remove the files of pods that are nowhere any more, and the volumes of those that are finished.

        Large volumes take their time.
        """
        busy = self._workers.busy()
        for uid in self._files.left_over(seen.pods.keys() | {c.pod_uid(r) for r in seen.records} | busy):
            self._workers.submit(uid, partial(self._files.remove, uid), waits=True)
        running = {c.pod_uid(r) for r in seen.records if r.running}
        for uid, pod in seen.pods.items():
            if is_pod_finished(pod) and uid not in running | busy and self._files.has_volumes(uid):
                self._workers.submit(uid, partial(self._files.remove_volumes, uid), waits=True)

    def _answered(self, target: Target, ok: bool, message: str) -> None:
        self._reporter.answered(target, ok, message)

    def _ensure_infra_image(self) -> None:
        now = self.clock.monotonic()
        if now < self._infra_image_due:
            return
        self._infra_image_due = now + _INFRA_IMAGE_CHECK
        try:
            self.runtime.ensure_infra_image()
        except RuntimeRefused as error:  # a pod that needs it says so too
            self._log.warning("infra image not built", error=str(error), retry_in=_INFRA_IMAGE_CHECK)

    # --- the engine's events ----------------------------------------------------------------

    def follow_events(self, stop: threading.Event) -> None:
        """Trigger on what the engine reports, until `stop`: the body of one thread."""
        threading.Thread(target=self._end_stream, args=(stop,), name="events-stop", daemon=True).start()
        said = Repetition()
        while not stop.is_set():
            try:
                self._stream = stream = self.runtime.events()
                if stop.is_set():
                    stream.close()
                self._infra_image_due = float("-inf")  # it may be another engine than before
                self.memory.forget_images()
                self.trigger()
                self.on_node_change()
                said.over()
                for event in stream:
                    self.heard(event)
            except PodlaneError as error:
                if not stop.is_set() and said.is_news(str(error), self.clock.monotonic()):
                    self._log.warning("events lost", error=str(error), retry_in=_RECONNECT)
            self.trigger()
            self.on_node_change()
            self.clock.wait(stop, _RECONNECT)

    def heard(self, event: RuntimeEvent) -> None:
        """The engine reported something."""
        if event.kind == "image":
            self.memory.forget_images()
        self.trigger()

    def follow_network(self, stop: threading.Event) -> None:
        """Trigger when somebody takes the pod network apart, until `stop`: the body of one thread."""

        def gone(link: str) -> None:
            if self._network.is_missed(link):
                self.trigger()

        self._podnet.watch(stop, gone)

    def _end_stream(self, stop: threading.Event) -> None:
        stop.wait()
        if self._stream is not None:
            self._stream.close()


def _ending(pods: Mapping[str, Pod], records: tuple[Record, ...]) -> dict[str, bool]:
    """UIDs of pods that must go, and whether they are ready: being deleted, or with containers and not bound here."""
    deleted = {uid: is_pod_ready(pod) for uid, pod in pods.items() if pod.metadata.deletion_timestamp is not None}
    return deleted | {uid: False for uid in map(c.pod_uid, records) if uid not in pods}


def _beside(do: Callable[[PodPlan, S], None], pod: PodPlan, step: S) -> Callable[[], float]:
    def work() -> float:
        do(pod, step)
        return 0.0

    return work
