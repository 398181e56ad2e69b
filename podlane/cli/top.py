"""`podlane top`: what pods and nodes use, asked of the agents that run them.

Owns: the sums, their order and their columns. All agents are asked at once, for
each measures for a second; one that does not answer, or a Node whose amounts cannot be
read, is named on stderr, the others are shown, and the exit code is 1. Words and columns are kubectl's; JSON has the
form of metrics.k8s.io.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import click

from podlane.cli.command import Command, fail, note, pass_session
from podlane.cli.complete import resource_arguments
from podlane.cli.options import all_namespaces_option, no_headers_option, output_option, selector_option
from podlane.cli.session import Session
from podlane.errors import PodlaneError, UsageError
from podlane.runtime.text import UNKNOWN

if TYPE_CHECKING:
    from podlane.api.selectors import Selector
    from podlane.api.types import Node, Pod

_AT_ONCE = 32
_MEBI = 1 << 20

Use = dict[str, int]
"""`cpu` in nanocores, `memory` in bytes."""


@click.command("top", cls=Command)
@click.argument("what", metavar="pods|nodes [NAME…]", nargs=-1, required=True, shell_complete=resource_arguments)
@all_namespaces_option
@click.option("--containers", is_flag=True, help="Each container of the pods.")
@selector_option
@click.option("--sort-by", type=click.Choice(["cpu", "memory", "name"]), default="name", help="The largest first.")
@output_option("table", "json", default="table")
@no_headers_option
@pass_session
def top(
    session: Session,
    *,
    what: tuple[str, ...],
    all_namespaces: bool,
    containers: bool,
    selector: Selector | None,
    sort_by: str,
    output: str,
    no_headers: bool,
) -> None:
    """Show what pods or nodes use of CPU and memory.

    \b
    podlane top pods -A --sort-by=memory
    podlane top pods -l app=web --containers
    podlane top nodes
    """  # noqa: D301 - \b is click's mark for a paragraph that is not to be wrapped
    from podlane.api.types import Node, Pod
    from podlane.cli.query import fetch
    from podlane.cli.resources import parse

    (target, *others) = parse(what)
    if others or target.resource.cls not in (Pod, Node):
        raise UsageError(f'argument "{" ".join(what)}": expected pods or nodes, and names of them')
    is_pods = target.resource.cls is Pod
    if not is_pods and (containers or all_namespaces):
        raise UsageError("--containers and --all-namespaces: expected pods with them")
    found = fetch(session, target, namespace=None if all_namespaces else session.namespace, selector=selector)
    pods = [p for p in found.objects if isinstance(p, Pod)]
    nodes = [n for n in found.objects if isinstance(n, Node)]
    if pods:
        placed = {p.spec.node_name for p in pods}
        nodes = [n for n in session.registry.list(Node).items if n.metadata.name in placed]
    told, failures = _ask(session, nodes)
    if is_pods:
        _show_pods(pods, told, sort_by, output, containers=containers, named=all_namespaces, headers=not no_headers)
    else:
        failures += _show_nodes(nodes, told, sort_by, output, headers=not no_headers)
    if not found.objects and not found.missing:
        note("No resources found" + (f" in {session.namespace} namespace." if is_pods and not all_namespaces else "."))
    if failures or found.missing:
        fail("\n".join([*failures, *found.missing]))


def _ask(session: Session, nodes: Sequence[Node]) -> tuple[dict[str, Any], list[str]]:
    """What each node's agent tells, by node; and why others do not."""
    from podlane.cli.podtarget import agent_at

    def one(node: Node) -> Any:
        try:
            return agent_at(session, node).stats()
        except PodlaneError as error:
            return error

    session.registry.cluster_config()  # opens the store, before many threads ask for it
    nodes = [node for node in nodes if node.status.daemon_endpoints.kubelet_endpoint.port]  # others have no API
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        answers = dict(zip((n.metadata.name for n in nodes), pool.map(one, nodes), strict=True))
    failures = [f"usage of node {name}: {a}" for name, a in answers.items() if isinstance(a, PodlaneError)]
    return {name: a for name, a in answers.items() if not isinstance(a, PodlaneError)}, failures


def _show_pods(
    pods: Sequence[Pod],
    told: Mapping[str, Any],
    sort_by: str,
    output: str,
    *,
    containers: bool,
    named: bool,
    headers: bool,
) -> None:
    used = {pod["uid"]: (answer, pod["containers"]) for answer in told.values() for pod in answer["pods"]}
    known = [(p, *used[p.metadata.uid]) for p in pods if p.metadata.uid in used]
    known.sort(key=_order(sort_by, lambda row: _sum(row[2]), lambda row: row[0].metadata))
    if output == "json":
        _print_json("PodMetrics", [_pod_metrics(*row) for row in known])
        return
    rows: list[list[str]] = []
    for pod, _, parts in known:
        place = [pod.metadata.namespace] if named else []
        if containers:
            rows += [[*place, pod.metadata.name, part["name"], *_cells(part)] for part in parts]
        else:
            rows.append([*place, pod.metadata.name, *_cells(_sum(parts))])
    columns = ["POD", "NAME"] if containers else ["NAME"]
    _print_table([*(["NAMESPACE"] if named else []), *columns, "CPU(cores)", "MEMORY(bytes)"], rows, headers=headers)


def _show_nodes(
    nodes: Sequence[Node], told: Mapping[str, Any], sort_by: str, output: str, *, headers: bool
) -> list[str]:
    """Returns which amounts could not be read."""
    known = [(n, told[n.metadata.name]) for n in nodes if n.metadata.name in told]
    known.sort(key=_order(sort_by, lambda row: row[1]["node"], lambda row: row[0].metadata))
    if output == "json":
        _print_json("NodeMetrics", [_metrics(n, answer) | {"usage": _usage(answer["node"])} for n, answer in known])
        return []
    rows: list[list[str]] = []
    unreadable: list[str] = []
    for node, answer in known:
        cpu, memory = _cells(answer["node"])
        shares = _shares(node, answer["node"], unreadable)
        rows.append([node.metadata.name, cpu, shares[0], memory, shares[1]])
    rows += [[n.metadata.name, *[UNKNOWN] * 4] for n in nodes if n.metadata.name not in told]
    _print_table(["NAME", "CPU(cores)", "CPU%", "MEMORY(bytes)", "MEMORY%"], rows, headers=headers)
    return unreadable


def _shares(node: Node, used: Use, unreadable: list[str]) -> list[str]:
    """CPU and memory in percent of what pods may use of the node; says what cannot be read."""
    from podlane.api import quantity

    shares = [UNKNOWN, UNKNOWN]
    for column, (name, scale) in enumerate((("cpu", 10**9), ("memory", 1))):
        try:
            offered = quantity.parse(node.status.allocatable.get(name, "0")) * scale
        except ValueError as error:
            unreadable.append(f"allocatable {name} of node {node.metadata.name}: {error}")
        else:
            shares[column] = f"{used[name] * 100 / offered:.0f}%" if offered > 0 else UNKNOWN
    return shares


def _order(sort_by: str, used: Callable[[Any], Use], named: Callable[[Any], Any]) -> Callable[[Any], Any]:
    def key(row: Any) -> Any:
        name = (named(row).namespace, named(row).name)
        return name if sort_by == "name" else (-used(row)[sort_by], *name)

    return key


def _sum(parts: Sequence[Use]) -> Use:
    return {key: sum(part[key] for part in parts) for key in ("cpu", "memory")}


def _cells(used: Use) -> tuple[str, str]:
    return f"{-(-used['cpu'] // 1_000_000)}m", f"{used['memory'] // _MEBI}Mi"


def _usage(used: Use) -> dict[str, str]:
    return {"cpu": f"{used['cpu']}n", "memory": f"{used['memory'] // 1024}Ki"}


def _pod_metrics(pod: Pod, answer: Any, parts: Sequence[Any]) -> dict[str, Any]:
    return _metrics(pod, answer) | {"containers": [{"name": p["name"], "usage": _usage(p)} for p in parts]}


def _metrics(obj: Pod | Node, answer: Any) -> dict[str, Any]:
    from podlane.api.codec import to_builtins
    from podlane.api.meta import utcnow_from

    names = to_builtins(obj)["metadata"]
    kept = {key: names[key] for key in ("name", "namespace", "labels") if names.get(key)}
    moment = utcnow_from(answer["timestamp"]).isoformat().replace("+00:00", "Z")
    return {"metadata": kept, "timestamp": moment, "window": f"{answer['window']:.3f}s"}


def _print_json(kind: str, items: Sequence[Any]) -> None:
    from podlane.cli.output import to_json

    click.echo(to_json({"apiVersion": "metrics.k8s.io/v1beta1", "kind": f"{kind}List", "items": items}))


def _print_table(header: Sequence[str], rows: Sequence[Sequence[str]], *, headers: bool) -> None:
    from podlane.runtime.text import TableWriter

    if rows:
        for line in TableWriter().render([*([list(header)] if headers else []), *map(list, rows)]):
            click.echo(line)
