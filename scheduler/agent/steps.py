"""Carrying out a pod's plan, step by step.

Owns: what each failure of a step means for the steps after it, and the events
told about it. Invariants: steps of one pod run in the plan's order; a failed
container does not keep the pod's other containers from starting, a failed
network does; a step that finds itself done already (name in use, container
gone) has succeeded. Event reasons and texts are the kubelet's.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, Protocol

from podlane.api.types import Pod
from podlane.errors import PodlaneError
from podlane.runtime.log import get_logger
from scheduler.agent import containers as c
from scheduler.agent import hooks
from scheduler.agent.actions import (
    Action,
    Attach,
    BindParts,
    Create,
    Files,
    MakeEmpty,
    Pull,
    Release,
    Remove,
    RunHook,
    SetUpVolumes,
    Signal,
    Start,
    WriteHosts,
)
from scheduler.agent.memory import Memory
from scheduler.agent.model import PodPlan
from scheduler.agent.podnet import Plug, PodNet
from scheduler.agent.runtime import (
    NameInUse,
    NoSuchContainer,
    NoSuchImage,
    NotRunning,
    Runtime,
    RuntimeRefused,
    RuntimeUnavailable,
)
from scheduler.agent.volumes import SubPath, VolumeSetUp

ENGINE_PAUSE = 1.0
"""Seconds before a pod is looked at again when the engine did not answer."""


class Events(Protocol):
    """podlane.store.events.EventRecorder, as far as it is used here."""

    def event(self, obj: Pod, kind: Literal["Normal", "Warning"], reason: str, message: str) -> None: ...


class HostsFiles(Protocol):
    """podfiles.PodFiles, as far as it is used here."""

    def write_hosts(
        self, path: str, hostname: str, ips: Sequence[str], *, aliases: Sequence[str] = (), on_host: bool = False
    ) -> None: ...

    def make_empty(self, path: str) -> None: ...

    def set_up(self, volume: VolumeSetUp) -> None: ...

    def bind(self, part: SubPath) -> None: ...


class Steps:
    """`release` says that nothing of a pod is left here. Thread-safe: one call per pod at a time."""

    def __init__(
        self,
        runtime: Runtime,
        *,
        podnet: PodNet,
        files: HostsFiles,
        memory: Memory,
        events: Events,
        release: Callable[[Pod], object],
    ) -> None:
        self._runtime = runtime
        self._podnet = podnet
        self._files = files
        self._memory = memory
        self._events = events
        self._release = release
        self._log = get_logger("agent")

    def carry_out(self, plan: PodPlan) -> float:
        """Do the plan's steps; returns in how many seconds to look at the node again."""
        broken: set[str] = set()
        for step in plan.steps:
            container = "" if isinstance(step, Release) else step.container
            if container in broken or broken & {c.INFRA, c.VOLUMES}:
                continue
            try:
                self._do(plan, step)
            except RuntimeUnavailable as error:
                self._log.warning("step failed", pod=plan.ref, error=str(error), retry_in=ENGINE_PAUSE)
                return ENGINE_PAUSE
            except PodlaneError as error:
                broken.add(container or c.INFRA)
                self._failed(plan, step, error)
        return 0.0

    def pull(self, plan: PodPlan, step: Pull) -> None:
        """Fetch an image for a container of a pod."""
        assert plan.pod is not None
        self._events.event(plan.pod, "Normal", "Pulling", f'Pulling image "{step.image}"')
        try:
            self._runtime.pull(step.image)
        except (RuntimeRefused, RuntimeUnavailable) as error:
            text = f'Failed to pull image "{step.image}": {error}'
            failure = self._memory.failed(plan.uid, step.container, "ErrImagePull", text, again="ImagePullBackOff")
            self._events.event(plan.pod, "Warning", "Failed", text)
            if failure.count > 1:
                self._events.event(plan.pod, "Normal", "BackOff", f'Back-off pulling image "{step.image}"')
            self._log.warning("pull failed", pod=plan.ref, image=step.image, error=str(error))
            return
        self._memory.forget_images()
        self._memory.succeeded(plan.uid, step.container)
        self._memory.fetched(plan.uid, step.container, step.attempt)
        self._events.event(plan.pod, "Normal", "Pulled", f'Successfully pulled image "{step.image}"')

    def run_hook(self, plan: PodPlan, step: RunHook) -> None:
        """Carry out a lifecycle hook to its end; that of `sleep` is only noted."""
        assert plan.pod is not None
        if step.kind == "PreStop":
            self._tell_end(plan, step.container, step.id, step.why)
        if step.hook.sleep is not None:
            self._memory.hook_ends(step.id, step.kind, in_seconds=step.hook.sleep.seconds)
            return
        ok, message = hooks.carry_out(self._runtime, step)
        if not ok:
            self._log.warning("hook failed", pod=plan.ref, step=str(step), error=message)
            self._events.event(plan.pod, "Warning", f"Failed{step.kind}Hook", f"{step.kind}Hook failed: {message}")
        self._memory.hook_ends(step.id, step.kind, error="" if ok else message or "failed")

    def _do(self, plan: PodPlan, step: Action) -> None:
        runtime = self._runtime
        match step:
            case Create():
                self._create(plan, step)
            case Start():
                runtime.start(step.name)
                if step.container != c.INFRA:  # which has not succeeded before it is attached
                    self._memory.succeeded(plan.uid, step.container)
                self._tell(plan, step.container, "Started", f"Started container {step.container}")
            case Attach():
                identity, pid = runtime.process(step.name)
                self._podnet.attach(Plug(identity, step.ip, step.network), pid)
                self._memory.succeeded(plan.uid, step.container)
            case WriteHosts() | MakeEmpty() | SetUpVolumes() | BindParts():
                self._prepare(plan, step)
            case Signal():
                self._signal(plan, step)
            case Remove():
                runtime.remove(step.name)
            case Release():
                assert plan.pod is not None
                self._release(plan.pod)
                self._log.info("pod removed", pod=plan.ref)
            case Pull() | RunHook():
                raise AssertionError("pulls and hooks go beside the steps")

    def _prepare(self, plan: PodPlan, step: Files) -> None:
        match step:
            case WriteHosts():
                self._files.write_hosts(step.path, step.hostname, step.ips, aliases=step.aliases, on_host=step.on_host)
            case MakeEmpty():
                self._files.make_empty(step.path)
            case SetUpVolumes():
                for volume in step.volumes:
                    self._files.set_up(volume)
                self._memory.note_volumes(plan.uid, step.stamp)
                self._memory.succeeded(plan.uid, step.container)
            case BindParts():
                for part in step.parts:
                    self._files.bind(part)

    def _create(self, plan: PodPlan, step: Create) -> None:
        if step.config.network.startswith("container:") and not self._was_pulled(plan, step):
            text = f'Container image "{step.config.image}" already present on machine'
            self._tell(plan, step.container, "Pulled", text)
        for text in step.skipped:
            if plan.pod is not None:
                self._events.event(plan.pod, "Warning", "InvalidEnvironmentVariableNames", text)
        try:
            self._runtime.create(step.config)
        except NameInUse:
            return  # by an earlier attempt at this very step: the name holds pod, container and attempt
        except NoSuchImage:
            self._memory.forget_images()  # it was there when we asked
            if step.container == c.INFRA:
                self._runtime.ensure_infra_image()
                self._runtime.create(step.config)
            else:
                raise
        self._tell(plan, step.container, "Created", f"Created container {step.container}")

    def _was_pulled(self, plan: PodPlan, step: Create) -> bool:
        number = int(step.config.labels[c.RESTART_COUNT])
        return (plan.uid, step.container, number) in self._memory.pulled()

    def _signal(self, plan: PodPlan, step: Signal) -> None:
        if step.why:
            self._tell_end(plan, step.container, step.id, step.why)
        try:
            self._runtime.signal(step.name, step.signal)
        except (NoSuchContainer, NotRunning):
            return
        if step.signal == "SIGTERM":
            self._memory.signalled(step.id)

    def _tell_end(self, plan: PodPlan, container: str, identity: str, why: str) -> None:
        if self._memory.stop_begins(identity):
            self._tell(plan, container, "Killing", why)

    def _failed(self, plan: PodPlan, step: Action, error: PodlaneError) -> None:
        container = c.INFRA if isinstance(step, Release) else step.container
        if container == c.INFRA:
            reason, event = "FailedCreatePodSandBox", "FailedCreatePodSandBox"
        elif container == c.VOLUMES:
            reason, event = "FailedMount", "FailedMount"
        else:
            reason = "RunContainerError" if isinstance(step, Start) else "CreateContainerError"
            event = "Failed"
        failure = self._memory.failed(plan.uid, container, reason, str(error))
        pause = failure.until - self._memory.now()
        self._log.warning("step failed", pod=plan.ref, step=str(step), error=str(error), retry_in=pause)
        if plan.pod is not None and not isinstance(step, Release):
            text = str(error) if event == "FailedMount" else f"Error: {error}"
            self._events.event(plan.pod, "Warning", event, text)

    def _tell(self, plan: PodPlan, container: str, reason: str, text: str) -> None:
        if plan.pod is not None and container != c.INFRA:
            self._events.event(plan.pod, "Normal", reason, text)
