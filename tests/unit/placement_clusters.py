"""Random clusters for placement: few labels, so that pods and nodes have much to do with each other."""

from __future__ import annotations

import msgspec
from hypothesis import strategies as st
from scheduler_objects import at, owned_by
from scheduler_objects import node as plain_node

from podlane.api.types import HOSTNAME_LABEL, ZONE_LABEL, Node, ObjectMeta, Pod, PodSpec, PodStatus

KEYS = (ZONE_LABEL, HOSTNAME_LABEL, "rack")
APPS = ("a", "b", "c")

SELF = "$self"  # in a selector: the pod's own app, for pods that have nothing to do with each other show nothing

label_selectors = st.one_of(
    st.just({"matchLabels": {"app": SELF}}),
    st.just({"matchLabels": {"app": SELF}}),
    st.sampled_from(APPS).map(lambda app: {"matchLabels": {"app": app}}),
    st.sampled_from(
        [
            {"matchExpressions": [{"key": "app", "operator": "In", "values": ["a", "b"]}]},
            {"matchExpressions": [{"key": "app", "operator": "NotIn", "values": ["a"]}]},
            {"matchExpressions": [{"key": "tier", "operator": "DoesNotExist"}]},
            {},
        ]
    ),
)


def optional(**fields):
    return st.fixed_dictionaries({}, optional=fields)


def few(strategy, most=2):
    return st.lists(strategy, max_size=most)


pod_terms = st.builds(
    lambda base, extra: {**base, **extra},
    st.fixed_dictionaries({"topologyKey": st.sampled_from(KEYS), "labelSelector": label_selectors}),
    st.sampled_from(
        [
            {},
            {},
            {"namespaces": ["other"]},
            {"namespaceSelector": {}},
            {"namespaceSelector": {"matchLabels": {"t": "x"}}},
        ]
    ),
)
weighted_terms = st.fixed_dictionaries({"weight": st.sampled_from([1, 10, 100]), "podAffinityTerm": pod_terms})

node_expressions = st.sampled_from(
    [
        {"key": "disk", "operator": "In", "values": ["ssd"]},
        {"key": "disk", "operator": "Exists"},
        {"key": ZONE_LABEL, "operator": "NotIn", "values": ["east"]},
        {"key": "size", "operator": "Gt", "values": ["2"]},
        {"key": "size", "operator": "Lt", "values": ["4"]},
    ]
)
node_terms = st.one_of(
    st.lists(node_expressions, min_size=1, max_size=2).map(lambda e: {"matchExpressions": e}),
    st.just({"matchFields": [{"key": "metadata.name", "operator": "NotIn", "values": ["n1"]}]}),
    st.just({}),
)

REQUIRED, PREFERRED = (f"{which}DuringSchedulingIgnoredDuringExecution" for which in ("required", "preferred"))

spreads = st.builds(
    lambda base, extra: {**base, **extra},
    st.fixed_dictionaries(
        {
            "maxSkew": st.integers(1, 2),
            "topologyKey": st.sampled_from(KEYS),
            "whenUnsatisfiable": st.sampled_from(["DoNotSchedule", "ScheduleAnyway"]),
            "labelSelector": label_selectors,
        }
    ),
    optional(
        minDomains=st.integers(1, 3),
        nodeAffinityPolicy=st.sampled_from(["Honor", "Ignore"]),
        nodeTaintsPolicy=st.sampled_from(["Honor", "Ignore"]),
    ),
)

affinities = optional(
    nodeAffinity=optional(
        **{
            REQUIRED: st.lists(node_terms, min_size=1, max_size=2).map(lambda terms: {"nodeSelectorTerms": terms}),
            PREFERRED: few(st.fixed_dictionaries({"weight": st.integers(1, 5), "preference": node_terms})),
        }
    ),
    podAffinity=optional(**{REQUIRED: few(pod_terms), PREFERRED: few(weighted_terms)}),
    podAntiAffinity=optional(**{REQUIRED: few(pod_terms, 1), PREFERRED: few(weighted_terms)}),
)

tolerations = st.sampled_from(
    [
        {"operator": "Exists"},
        {"key": "dedicated", "operator": "Exists"},
        {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"},
        {"key": "node.kubernetes.io/unschedulable", "operator": "Exists"},
        {"key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoSchedule"},
    ]
)

requests = st.sampled_from(
    [{}, {}, {"cpu": "100m"}, {"cpu": "100m"}, {"cpu": "500m", "memory": "512Mi"}, {"memory": "1Gi"}, {"cpu": "1"}]
)
host_ports = st.sampled_from(
    [
        {"containerPort": 80},
        {"containerPort": 80, "hostPort": 80},
        {"containerPort": 80, "hostPort": 80, "hostIP": "10.0.0.1"},
        {"containerPort": 80, "hostPort": 80, "protocol": "UDP"},
    ]
)
containers = st.fixed_dictionaries(
    {"resources": st.fixed_dictionaries({"requests": requests, "limits": requests}), "ports": few(host_ports, 1)}
)
init_containers = st.builds(
    lambda resources, sidecar: {"resources": resources, **({"restartPolicy": "Always"} if sidecar else {})},
    st.fixed_dictionaries({"requests": requests}),
    st.booleans(),
)


def some(strategy, most=2):
    return st.lists(strategy, min_size=1, max_size=most)


def hard(strategy):
    return strategy.map(lambda c: {**c, "whenUnsatisfiable": "DoNotSchedule"})


def near_and_apart(**fields):
    return st.fixed_dictionaries({name: st.fixed_dictionaries(parts) for name, parts in fields.items()})


# what one template is mostly about: drawn apart, each would be too rare to meet another
themes = st.one_of(
    st.fixed_dictionaries({"affinity": near_and_apart(podAffinity={REQUIRED: some(pod_terms)})}),
    st.fixed_dictionaries({"affinity": near_and_apart(podAntiAffinity={REQUIRED: some(pod_terms, 1)})}),
    st.fixed_dictionaries(
        {
            "affinity": near_and_apart(
                podAffinity={PREFERRED: few(weighted_terms)}, podAntiAffinity={PREFERRED: some(weighted_terms)}
            )
        }
    ),
    st.fixed_dictionaries(
        {"topologySpreadConstraints": some(hard(spreads))}, optional={"nodeSelector": st.just({"disk": "ssd"})}
    ),
    st.fixed_dictionaries({"topologySpreadConstraints": some(spreads)}),
    st.fixed_dictionaries({"affinity": affinities, "tolerations": few(tolerations)}),
    optional(
        initContainers=few(init_containers),
        nodeSelector=st.just({"disk": "ssd"}),
        tolerations=few(tolerations),
        topologySpreadConstraints=few(spreads),
        affinity=affinities,
    ),
    st.fixed_dictionaries({"initContainers": some(init_containers)}),
)
priorities = st.sampled_from(
    [{}, {}, {"priority": 10}, {"priority": 1000}, {"priority": 1000, "preemptionPolicy": "Never"}]
)

pod_specs = st.builds(
    lambda base, theme, priority: {**base, **theme, **priority},
    st.fixed_dictionaries({"containers": st.lists(containers, min_size=1, max_size=2)}),
    themes,
    priorities,
)


def with_self(template):
    own = template["labels"]["app"].encode()
    return {**template, "spec": msgspec.json.decode(msgspec.json.encode(template["spec"]).replace(SELF.encode(), own))}


templates = st.fixed_dictionaries(
    {
        "namespace": st.sampled_from(["default", "default", "default", "other"]),
        "owner": st.sampled_from(["", "web", "db"]),
        "labels": st.sampled_from([{"app": app} for app in APPS] + [{"app": "a", "tier": "x"}]),
        "spec": pod_specs,
    }
).map(with_self)
NAMESPACES = {"default": {}, "other": {"t": "x"}}


def pod_of(template, name: str, *, created: float = 0, node: str = "", ending: bool = False) -> Pod:
    spec = msgspec.convert({**template["spec"], "nodeName": node}, PodSpec)
    return Pod(
        kind="Pod",
        api_version="v1",
        metadata=ObjectMeta(
            name=name,
            namespace=template["namespace"],
            uid=f"uid-{name}",
            resource_version="1",
            creation_timestamp=at(created),
            deletion_timestamp=at(1) if ending else None,
            labels=template["labels"],
            owner_references=owned_by(template["owner"]) if template["owner"] else (),
        ),
        spec=spec,
        status=PodStatus(),
    )


@st.composite
def nodes(draw, name: str) -> Node:
    labels = {HOSTNAME_LABEL: name}
    for key, values in ((ZONE_LABEL, ["east", "west"]), ("rack", ["r1", "r2", "r3"]), ("disk", ["ssd", "hdd"])):
        if (value := draw(st.sampled_from([*values, *values, None]))) is not None:
            labels[key] = value
    labels["size"] = draw(st.sampled_from(["1", "3", "5", "big"]))
    made = plain_node(
        name,
        cpu=draw(st.sampled_from(["1", "4", "8"])),
        memory=draw(st.sampled_from(["2Gi", "8Gi"])),
        pods=draw(st.sampled_from(["2", "10", "20"])),
        ready=draw(st.sampled_from(["True"] * 9 + ["False"])),
        cordoned=draw(st.sampled_from([False] * 9 + [True])),
        labels=labels,
    )
    taints = draw(
        few(
            st.sampled_from(
                [
                    {"key": "dedicated", "value": "gpu", "effect": "NoSchedule"},
                    {"key": "old", "effect": "PreferNoSchedule"},
                    {"key": "bad", "effect": "NoExecute"},
                ]
            ),
            1,
        )
    )
    spec = msgspec.convert({**msgspec.to_builtins(made.spec), "taints": taints}, type(made.spec))
    return msgspec.structs.replace(made, spec=spec)


@st.composite
def clusters(draw, most_nodes: int = 7, most_templates: int = 3, most_pods: int = 6):
    """(nodes, pods that run, templates, pods that wait: some of each template, in turn)."""
    members = [draw(nodes(f"n{i}")) for i in range(draw(st.integers(1, most_nodes)))]
    kinds = draw(st.lists(templates, min_size=1, max_size=most_templates))
    which, where = st.integers(0, len(kinds) - 1), st.integers(0, len(members) - 1)
    running = [
        pod_of(kinds[kind], f"r{i}", node=members[node].metadata.name, ending=ending)
        for i, (kind, node, ending) in enumerate(
            draw(st.lists(st.tuples(which, where, st.sampled_from([False, False, True])), max_size=most_pods))
        )
    ]
    waiting = [
        pod_of(kind, f"w{number}{replica}", created=number)
        for number, kind in enumerate(kinds)
        for replica in range(draw(st.integers(0 if number else 1, most_pods)))
    ]
    return members, running, kinds, waiting
