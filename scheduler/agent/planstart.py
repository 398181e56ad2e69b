"""Bringing the containers of one pod up, and keeping them so. Pure.

Owns: when an attempt is created and started, when it has to be replaced, and
what a pod waits for. Invariants: one attempt at a time; nothing is started
while the postStart hook of a container before it has not ended; a container
whose startup or liveness probe has failed, whose hook has failed or whose
specification has changed is ended in its grace period and started again by the
restart rules (history.py). Source: Kubernetes' computePodActions and
startContainer (pkg/kubelet/kuberuntime).
"""

from __future__ import annotations

from podlane.api.types import Container, Pod
from scheduler.agent import containers as c
from scheduler.agent import volumes as v
from scheduler.agent.actions import (
    Action,
    BindParts,
    Create,
    MakeEmpty,
    Pull,
    Remove,
    RunHook,
    Signal,
    Start,
    WriteHosts,
)
from scheduler.agent.environment import ConfigError, NotRead, ServicesNotRead, environment
from scheduler.agent.history import is_due, is_sidecar, next_start
from scheduler.agent.model import Observed
from scheduler.agent.planstop import Stops
from scheduler.agent.runtime import Mount, Record
from scheduler.agent.security import needs_image_user, security

CONFIG_ERROR = "CreateContainerConfigError"
NEVER_PULL = "ErrImageNeverPull"
CREATING = "ContainerCreating"
KEPT_DEAD = 1
"""Ended containers kept per container of a pod, for `logs --previous`."""
_HOOK_TIMEOUT = 3600.0  # a postStart hook has no limit of its own in Kubernetes


def is_held(seen: Observed, pod: Pod, ct: Container, last: Record) -> bool:
    """A running container's postStart hook has not ended well (yet), so it does not count as running."""
    if ct.lifecycle is None or ct.lifecycle.post_start is None:
        return False
    run = seen.hooks.get((last.id, "PostStart"))
    if run is None:
        return not _is_reported_running(pod, last)
    return not run.is_over(seen.now) or bool(run.error)


def is_started(seen: Observed, pod: Pod, ct: Container, last: Record) -> bool:
    """It runs, its postStart hook has ended and its startup probe has passed, as far as it has them."""
    ready = ct.startup_probe is None or last.id in seen.started
    return last.running and ready and not is_held(seen, pod, ct, last)


def _is_reported_running(pod: Pod, record: Record) -> bool:
    """It did before this agent started: the hook ended then."""
    statuses = (*pod.status.init_container_statuses, *pod.status.container_statuses)
    return any(s.container_id == f"docker://{record.id}" and s.state.running is not None for s in statuses)


class Builder:
    """Collects the steps for the containers of one pod, in the order of its specification."""

    def __init__(self, seen: Observed, pod: Pod, infra: str, infra_id: str, ip: str) -> None:
        self.seen, self.pod, self.infra, self.infra_id, self.ip = seen, pod, infra, infra_id, ip
        self.blocked: tuple[str, float | None] | None = None
        self.steps: list[Action] = []
        self.pulls: list[Pull] = []
        self.held = False
        self.stops = Stops(seen, pod, ip)
        self.waiting: dict[str, tuple[str, str]] = {}
        self.wants_services = False
        self.why: list[str] = []
        self.wake_at: float | None = None

    def add(self, ct: Container, history: list[Record]) -> None:
        """`history` is the container's records, the latest first."""
        last = history[0] if history else None
        if last is not None and last.running:
            self._check_running(ct, last)
        elif self.held:
            self.waiting[ct.name] = (CREATING, "")
        elif last is None:
            self._start(ct, self._first_attempt(ct), 0)
        elif last.state == "created":
            self._begin_created(ct, last)
        elif is_due(self.pod, ct, last) or (ct in self.pod.spec.init_containers and self._is_elsewhere(last)):
            self._restart(ct, last)
        self.steps += [Remove(ct.name, r.name) for r in history[1 + KEPT_DEAD :] if not r.running]

    def _begin_created(self, ct: Container, last: Record) -> None:
        if not self._is_elsewhere(last) and self._current(ct, last):
            failure = self.seen.failures.get((self.pod.metadata.uid, ct.name))
            if failure is not None and failure.until > self.seen.now:
                self.waiting[ct.name] = (failure.reason, failure.message)
                self._wake(failure.until)
                return
            self.waiting[ct.name] = (CREATING, "")
            self.steps.append(Start(ct.name, last.name))
            self._hold_for(ct)
            return
        if self.infra_id:  # a rebuild has removed it already
            self.steps.append(Remove(ct.name, last.name))
        self._start(ct, c.attempt(last), c.backoff(last))

    def _check_running(self, ct: Container, last: Record) -> None:
        if self._is_elsewhere(last):
            if self.infra_id:
                self.steps.append(Signal(ct.name, last.name, last.id, "SIGKILL"))
            self.why.append(f"{ct.name} is in a dead network namespace")
            if self.held:
                self.waiting[ct.name] = (CREATING, "")
            else:
                self._start(ct, c.attempt(last) + 1, c.backoff(last))
        elif not self._current(ct, last):
            self._stop(last, f"{ct.name} specification changed", f"Container {ct.name} definition changed")
        elif (failed := self.seen.unhealthy.get(last.id)) is not None:
            text = f"Container {ct.name} failed {failed.kind} probe"
            self._stop(last, f"{ct.name} failed its {failed.kind} probe", text, failed.grace)
        elif last.id in self.seen.stops:
            self._stop(last, f"{ct.name} is to end", "")
        else:
            self._after_start(ct, last)

    def _stop(self, last: Record, why: str, event: str, grace: float | None = None) -> None:
        restarts = self.pod.spec.restart_policy != "Never" or self._is_sidecar(last)
        known = self.seen.stops.get(last.id)
        self.stops.stop(
            last,
            begun=known.begun if known is not None else self.seen.now,
            grace=self.pod.spec.termination_grace_period_seconds if grace is None else grace,
            why=f"{event}, will be restarted" if restarts else event,
        )
        self.why.append(why)

    def _after_start(self, ct: Container, last: Record) -> None:
        """See to the postStart hook; whoever comes after the container waits for it."""
        if not is_held(self.seen, self.pod, ct, last):
            return
        assert ct.lifecycle is not None
        assert ct.lifecycle.post_start is not None
        self.held = True
        self.waiting[ct.name] = (CREATING, "")
        run = self.seen.hooks.get((last.id, "PostStart"))
        if run is None:
            hook = ct.lifecycle.post_start
            step = RunHook(ct.name, last.name, last.id, "PostStart", hook, ct, self.ip, _HOOK_TIMEOUT)
            self.stops.hooks.append(step)
        elif run.error and run.is_over(self.seen.now):
            self.waiting[ct.name] = ("PostStartHookError", run.error)
            self._stop(last, f"postStart hook of {ct.name} failed", "FailedPostStartHook")
        elif run.over_at is not None:
            self._wake(run.over_at)

    def _restart(self, ct: Container, last: Record) -> None:
        at, wait = next_start(last, self.seen.now)
        if self._is_elsewhere(last):  # it did not fail, its network did
            at, wait = self.seen.now, c.backoff(last)
        elif not self._current(ct, last):
            at, wait = self.seen.now, 0
        if at > self.seen.now:
            meta = self.pod.metadata
            self.waiting[ct.name] = (
                "CrashLoopBackOff",
                f"back-off {c.backoff(last)}s restarting failed container={ct.name} "
                f"pod={meta.name}_{meta.namespace}({meta.uid})",
            )
            self._wake(at)
            return
        self.why.append(f"{ct.name} ended with {last.exit_code}")
        self._start(ct, c.attempt(last) + 1, wait)

    def _start(self, ct: Container, number: int, wait: int) -> None:
        """Create and start an attempt once its image is there and earlier failures are slept off."""
        uid = self.pod.metadata.uid
        self.waiting.setdefault(ct.name, (CREATING, ""))
        if self.blocked is not None:
            self.waiting[ct.name] = (CREATING, self.blocked[0])
            if self.blocked[1] is not None:
                self._wake(self.blocked[1])
            return
        failure = self.seen.failures.get((uid, ct.name))
        if failure is not None and failure.until > self.seen.now:
            self.waiting[ct.name] = (failure.reason, failure.message)
            self._wake(failure.until)
            return
        present = self.seen.images.get(ct.image) is not None
        if ct.image_pull_policy == "Never" and not present:
            text = f'Container image "{ct.image}" is not present with pull policy of Never'
            self.waiting[ct.name] = (NEVER_PULL, text)
            return
        fetched = (uid, ct.name, number) in self.seen.pulled
        if (ct.image_pull_policy == "Always" and not fetched) or not present:
            if failure is not None:
                self.waiting[ct.name] = (failure.reason, failure.message)
            self.pulls.append(Pull(ct.name, ct.image, number))
            return
        try:
            self.steps += self._make(ct, number, wait)
            self._hold_for(ct)
        except ServicesNotRead:
            self.wants_services = True
        except NotRead as error:
            self.waiting[ct.name] = (CREATING, str(error))
        except ConfigError as error:
            self.waiting[ct.name] = (CONFIG_ERROR, str(error))

    def _make(self, ct: Container, number: int, wait: int) -> list[Action]:
        """Raises ConfigError, NotRead."""
        seen, pod, ips = self.seen, self.pod, self._ips()
        if needs_image_user(pod, ct) and ct.image not in seen.users:
            raise NotRead(f"it is not known yet whom image {ct.image} runs as")
        env = environment(pod, ct, seen.known, seen.node, ips)
        words, mounts = self._last_words(ct, number), v.mounts(pod, ct, seen.files)
        if words and ct.termination_message_path not in {mount.target for mount in mounts}:
            mounts = (*mounts, Mount(words, ct.termination_message_path))
        config = c.container_config(
            pod,
            ct,
            self.infra,
            number,
            wait,
            env=env,
            mounts=mounts,
            security=security(pod, ct, seen.users.get(ct.image, "")),
            node_memory=seen.node.memory,
        )
        aliases = tuple(f"{alias.ip}\t" + "\t".join(alias.hostnames) for alias in pod.spec.host_aliases)
        hosts = seen.files.hosts(pod.metadata.uid)
        parts = v.sub_paths(pod, ct, seen.files)
        return [
            WriteHosts(ct.name, hosts, c.hostname_of(pod), ips, aliases, pod.spec.host_network),
            *([MakeEmpty(ct.name, words)] if words else []),
            *([BindParts(ct.name, parts)] if parts else []),
            Create(ct.name, config, env.skipped),
            Start(ct.name, config.name),
        ]

    def _last_words(self, ct: Container, number: int) -> str:
        """The file for an attempt's termination message; "" when there is to be none."""
        return self.seen.files.last_words(self.pod.metadata.uid, ct.name, number) if ct.termination_message_path else ""

    def _ips(self) -> tuple[str, ...]:
        if self.pod.spec.host_network:
            return self.seen.node.ips
        known = self.seen.addresses
        return known.network.ips(self.ip) if known is not None else (self.ip,)

    def _first_attempt(self, ct: Container) -> int:
        """Goes on counting where the status stopped when the engine lost its containers."""
        reported = self.pod.status
        for status in (*reported.init_container_statuses, *reported.container_statuses):
            if status.name == ct.name and status.container_id:
                return status.restart_count + 1
        return 0

    def _hold_for(self, ct: Container) -> None:
        """It is being started: if it has a postStart hook, nothing else is."""
        self.held = self.held or (ct.lifecycle is not None and ct.lifecycle.post_start is not None)

    def _is_elsewhere(self, record: Record) -> bool:
        """In another network namespace than the pod's is, or is to be."""
        return not self.infra_id or record.joined != self.infra_id

    def _is_sidecar(self, record: Record) -> bool:
        return any(is_sidecar(ct) for ct in self.pod.spec.init_containers if ct.name == c.container_name(record))

    @staticmethod
    def _current(ct: Container, record: Record) -> bool:
        return record.labels.get(c.SPEC_HASH) == c.spec_hash(ct)

    def _wake(self, at: float) -> None:
        self.wake_at = at if self.wake_at is None else min(self.wake_at, at)
