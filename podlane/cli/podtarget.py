"""From what a person names to a container on a node, and the agent there.

Owns: `web-1`, `pod/web-1`, `rc/web`, `svc/web` to a pod (of several the one
that is ready, then by name), the choice of its container, and the address of
its node's agent. Errors say what is missing: the pod, its node, its container.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from podlane.api.meta import controller_of, is_pod_active, is_pod_ready
from podlane.api.selectors import selects
from podlane.api.types import AGENT_CERTIFICATE_ANNOTATION, Node, Pod, ReplicationController, Service
from podlane.cli.command import note
from podlane.cli.query import missing_text
from podlane.cli.resources import parse_any
from podlane.errors import NotFound, PodlaneError, UsageError

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.cli.session import Session
    from scheduler.agent.client import AgentClient
    from scheduler.agent.trust import Trust

DEFAULT_CONTAINER_ANNOTATION = "kubectl.kubernetes.io/default-container"


@dataclass(frozen=True, slots=True)
class ContainerTarget:
    pod: Pod
    container: str

    @property
    def prefix(self) -> str:
        """`[pod/web-1/web]`, as kubectl marks lines."""
        return f"[pod/{self.pod.metadata.name}/{self.container}]"


def find_pod(session: Session, word: str) -> Pod:
    """The pod that `word` means. Raises NotFound, UsageError."""
    target = parse_any(word, Pod)
    name = target.names[0]
    cls = target.resource.cls
    try:
        if cls is Pod:
            return session.registry.get(Pod, session.namespace, name)
        if cls is ReplicationController:
            rc = session.registry.get(ReplicationController, session.namespace, name)
            owned = [p for p in _pods(session) if (o := controller_of(p)) is not None and o.uid == rc.metadata.uid]
            return _best(owned, word)
        if cls is Service:
            selector = session.registry.get(Service, session.namespace, name).spec.selector
            return _best([p for p in _pods(session) if selects(selector, p.metadata.labels)], word)
    except NotFound as error:
        if isinstance(error, _NoPods):
            raise
        raise NotFound(missing_text(target, name)) from error
    raise UsageError(f'argument "{word}": expected a pod, a replication controller or a service')


class _NoPods(NotFound):
    """The controller or service is there, its pods are not."""


def _pods(session: Session) -> Sequence[Pod]:
    return session.registry.list(Pod, session.namespace).items


def _best(pods: Sequence[Pod], word: str) -> Pod:
    usable = [pod for pod in pods if is_pod_active(pod) and pod.spec.node_name]
    if not usable:
        raise _NoPods(f"{word}: no pod of it runs")
    return min(usable, key=lambda pod: (not is_pod_ready(pod), pod.metadata.name))


def find_pods(session: Session, selector: Selector) -> list[Pod]:
    """The pods with these labels, by name."""
    chosen = [pod for pod in _pods(session) if selector.matches(pod.metadata.labels)]
    return sorted(chosen, key=lambda pod: pod.metadata.name)


def container_names(pod: Pod) -> list[str]:
    """In the order they start."""
    return [container.name for container in (*pod.spec.init_containers, *pod.spec.containers)]


def container_of(pod: Pod, name: str | None) -> ContainerTarget:
    """The container called `name`, else the default one. Raises UsageError naming those there are."""
    names = container_names(pod)
    if name is None:
        chosen = pod.metadata.annotations.get(DEFAULT_CONTAINER_ANNOTATION)
        if chosen in names:
            return ContainerTarget(pod, chosen)
        first = pod.spec.containers[0].name
        if len(names) > 1:
            note(f'Defaulted container "{first}" out of: {", ".join(names)}')
        return ContainerTarget(pod, first)
    if name not in names:
        raise UsageError(f'pod {pod.metadata.name}: no container "{name}"; it has {", ".join(names)}')
    return ContainerTarget(pod, name)


def agent_of(session: Session, pod: Pod) -> AgentClient:
    """A client of the agent on the pod's node. Raises PodlaneError when there is none to ask."""
    name = pod.spec.node_name
    if not name:
        raise PodlaneError(f"pod {pod.metadata.name}: not placed on a node yet")
    try:
        node = session.registry.get(Node, "", name)
    except NotFound as error:
        raise NotFound(f"pod {pod.metadata.name}: its node {name} is gone") from error
    return agent_at(session, node)


def agent_at(session: Session, node: Node) -> AgentClient:
    """A client of a node's agent. Raises PodlaneError when the node does not tell how to reach it."""
    from scheduler.agent.client import AgentClient

    name, status = node.metadata.name, node.status
    address = next((a.address for a in status.addresses if a.type == "InternalIP"), None)
    if address is None:
        raise PodlaneError(f"node {name}: its agent has not told its address yet")
    port = status.daemon_endpoints.kubelet_endpoint.port
    if not port:
        raise PodlaneError(f"node {name}: its agent has no API, as on hollow nodes")
    host = f"[{address}]" if ":" in address else address
    return AgentClient(f"https://{host}:{port}", _trust(session, node))


def _trust(session: Session, node: Node) -> Trust:
    """By our certificate when we have one, whatever the node tells of itself: it could ask for the token else."""
    from scheduler.agent.trust import Mutual, Pinned

    name, config = node.metadata.name, session.config
    if config.certfile:
        return Mutual(name, config.cafile, config.certfile, config.keyfile)
    fingerprint = node.metadata.annotations.get(AGENT_CERTIFICATE_ANNOTATION, "")
    if not fingerprint:
        raise PodlaneError(
            f"node {name}: its agent wants an operator's certificate, or is of an older version: "
            "give --etcd-cafile, --etcd-certfile and --etcd-keyfile"
        )
    return Pinned(session.registry.cluster_config().agent_token, fingerprint)


def why_not_started(target: ContainerTarget) -> str | None:
    """`ContainerCreating` for a container that has never run; None for one that has."""
    told = target.pod.status
    statuses = (*told.init_container_statuses, *told.container_statuses)
    status = next((s for s in statuses if s.name == target.container), None)
    if status is None:
        return told.reason or told.phase
    if status.state.waiting is not None and not status.restart_count:
        return status.state.waiting.reason or "Waiting"
    return None
