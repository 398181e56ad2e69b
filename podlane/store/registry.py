"""The typed objects in the store, and every rule about writing them.

Owns: all writes below /registry and /podlane. Invariants:
- every write compares what it rests on (a revision, an absence) and, for a
  leader, its fence; nothing is ever overwritten unseen;
- a bound pod and its copy under /podlane/bindings/{node}/ are written and
  removed in one transaction, so the copy's mod_revision is the pod's
  resourceVersion and an agent needs to watch its own prefix only; what its
  node reported of it (reports.py) goes with them;
- a service and the keys of its addresses and node ports are one transaction:
  no two services share one, and none outlives its service.
Semantics are Kubernetes' (generation, graceful deletion, immutable fields);
source: registry/generic/registry/store.go and registry/core in kube-apiserver.
Validation of manifests is not done here but where they are read.

A StoreUnavailable from a write leaves open whether it was done: reading again
tells.
"""

from __future__ import annotations

import builtins
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

import msgspec

from podlane.api.codec import DecodeError, decode, encode
from podlane.api.defaults import DEFAULT_NAMESPACE, apply_defaults
from podlane.api.meta import new_uid, short_name, utcnow_from
from podlane.api.priority import SYSTEM_CLASSES
from podlane.api.types import (
    NODE_LEASE_NAMESPACE,
    ClusterConfig,
    Lease,
    LeaseSpec,
    Namespace,
    Object,
    Pod,
    Service,
)
from podlane.errors import AlreadyExists, Conflict, NotFound, StoreUnavailable
from podlane.runtime.clock import Clock, SystemClock
from podlane.runtime.log import get_logger
from podlane.store import admission, bulk, keys, services
from podlane.store.deletion import NAMESPACE_FINALIZER, Propagation, grace_of, is_over, remainder
from podlane.store.interface import DEFAULT_TIMEOUT, Compare, KeyValue, Put, Store
from podlane.store.mirror import Mirror
from podlane.store.rules import (
    at_revision,
    change,
    key_of,
    named,
    removal,
    replacement,
)
from podlane.store.writes import Lost, Write, commit

O = TypeVar("O", bound=Object)  # noqa: E741 - an object

NAME_LETTERS = "bcdfghjklmnpqrstvwxz2456789"  # Kubernetes': no vowels, so no words


@dataclass(frozen=True, slots=True)
class ObjectList(Generic[O]):
    """Objects as of one revision; `undecodable` are the keys whose value cannot be read."""

    items: tuple[O, ...]
    revision: int
    undecodable: tuple[str, ...] = ()


class Registry:
    """Thread-safe. Every call may raise StoreUnavailable, and Fenced if there is a `fence`."""

    def __init__(
        self,
        store: Store,
        *,
        clock: Clock | None = None,
        fence: Compare | None = None,
        rng: random.Random | None = None,
    ) -> None:
        self.store = store
        self.fence = fence
        self.clock = clock or SystemClock()
        self.rng = rng or random.Random()
        self._log = get_logger("registry")

    def fenced(self, fence: Compare) -> Registry:
        """The same registry, but each write also compares `fence` and raises Fenced when it does not hold."""
        return Registry(self.store, clock=self.clock, fence=fence, rng=self.rng)

    # --- reading -------------------------------------------------------------------

    def get(self, cls: type[O], namespace: str, name: str) -> O:
        """Raises NotFound, DecodeError."""
        return self._read(cls, namespace, name)

    def list(self, cls: type[O], namespace: str | None = None) -> ObjectList[O]:
        """All objects of a kind, or of one namespace, sorted by key."""
        items: list[O] = []
        undecodable: list[str] = []
        revision = 0
        for page in self.store.pages(keys.prefix_for(cls, namespace)):
            revision = page.revision
            for kv in page.items:
                try:
                    items.append(decode(cls, kv.value, revision=kv.mod_revision))
                except DecodeError as error:
                    self._log.warning("left out of list", key=kv.key, error=str(error))
                    undecodable.append(kv.key)
        return ObjectList(tuple(items), revision, tuple(undecodable))

    def mirror(
        self,
        cls: type[O],
        on_change: Callable[[], None],
        namespace: str | None = None,
        *,
        keep: Callable[[O], O] | None = None,
    ) -> Mirror[O]:
        """A Mirror of a kind keyed "namespace/name", or "name" for kinds without namespaces.

        `keep` returns what is to be held of an object, where that is not all of it.
        """
        within = f"{namespace}/" if namespace is not None and cls.NAMESPACED else ""

        def read(kv: KeyValue) -> O:
            obj = decode(cls, kv.value, revision=kv.mod_revision)
            return obj if keep is None else keep(obj)

        return Mirror(
            self.store,
            keys.prefix_for(cls, namespace),
            decode=read,
            on_change=on_change,
            name=cls.KIND.lower(),
            clock=self.clock,
            key_prefix=within,
        )

    def bindings(self, node: str, on_change: Callable[[], None]) -> Mirror[Pod]:
        """A Mirror of the pods bound to one node, keyed "namespace/name"."""
        return Mirror(
            self.store,
            keys.bindings_prefix(node),
            decode=lambda kv: decode(Pod, kv.value, revision=kv.mod_revision),
            on_change=on_change,
            name="binding",
            clock=self.clock,
        )

    # --- writing -------------------------------------------------------------------

    def create(self, obj: O) -> O:
        """Store a new object with uid, creationTimestamp and generation 1; returns it as stored.

        A service gets its cluster IPs and node ports, and a load balancer its
        loadBalancerIP as status (services.py). With generateName and no name,
        one is made up. Raises AlreadyExists, Invalid (an address or node port
        asked for is not to be had), RangeFull, NotFound (its namespace is not
        there), NamespaceTerminating.
        """
        for _ in range(8):
            new = self.prepared(obj)
            try:
                return cast(O, services.create(self, new)) if isinstance(new, Service) else self._create(new)
            except AlreadyExists:
                if obj.metadata.name:
                    raise
        raise AlreadyExists(f"create {short_name(new)}: every name tried is taken")

    def update(self, obj: O) -> O:
        """Replace an object if its resourceVersion is still the latest (any, if it has none).

        uid, creationTimestamp and a deletionTimestamp stay; generation grows
        when the spec changed; writing what is there already writes nothing. A
        service keeps what it was given and says nothing of, and gets or gives
        back what its new type does or does not need. Raises NotFound, Conflict,
        Invalid (an immutable field changed, or what is asked for is taken),
        RangeFull.
        """
        old = self._read(type(obj), obj.metadata.namespace, obj.metadata.name)
        if obj.metadata.resource_version not in {"", old.metadata.resource_version}:
            raise Conflict(
                f"update {short_name(obj)}: it is at version {old.metadata.resource_version}, "
                f"not {obj.metadata.resource_version}"
            )
        return self._replace(old, obj)

    def replace(self, old: O, new: O) -> O:
        """As `update`, over an object as it was last seen, which is not read again.

        Raises NotFound, Conflict (it has changed since), Invalid, RangeFull.
        """
        return self._replace(old, new)

    def modify(self, cls: type[O], namespace: str, name: str, change: Callable[[O], O | None]) -> O:
        """Read, change and write, again when another writer was faster, for DEFAULT_TIMEOUT seconds.

        `change` may return None (or its argument) for "leave it so". Returns
        the object as it then is. Raises NotFound, Conflict, Invalid.
        """
        deadline = self.deadline()
        while True:
            old = self._read(cls, namespace, name)
            new = change(old)
            if new is None:
                return old
            try:
                return self._replace(old, new)
            except Conflict:
                self.check(deadline)

    def delete(
        self,
        cls: type[O],
        namespace: str,
        name: str,
        *,
        uid: str | None = None,
        grace_seconds: int | None = None,
        propagation: Propagation | None = None,
    ) -> O:
        """Delete an object and return what it was, or what it is if it ends gracefully.

        A pod bound to a node is only marked (deletionTimestamp, its grace
        period unless `grace_seconds` says otherwise); its agent ends it. It
        is gone at once with a grace of 0, when it is finished or not bound. So
        is whatever has finalizers; it goes when the last is taken away.
        `propagation` says what becomes of its dependents.
        Raises NotFound, Conflict (`uid` differs).
        """
        deadline = self.deadline()
        while True:
            old = self._read(cls, namespace, name)
            if uid is not None and old.metadata.uid != uid:
                raise Conflict(f"delete {short_name(old)}: its uid is {old.metadata.uid}, not {uid}")
            try:
                left = self.left_of(old, grace_seconds, propagation)
                if left == old:
                    return old
                if left is not None:
                    return at_revision(left, self._write(old, change(old, left), "delete"))
                self._write(old, removal(old), "delete")
                return old
            except Conflict:
                self.check(deadline)

    # --- many at once ----------------------------------------------------------------

    def bind(self, bindings: Sequence[bulk.Binding]) -> builtins.list[Exception | None]:
        """Give pods their nodes, many to a transaction; see bulk.bind."""
        return bulk.bind(self, bindings)

    def create_many(self, objs: Sequence[O]) -> builtins.list[O | Exception]:
        """Create independent objects, many to a transaction; each answer is the object or what `create` would raise."""
        return bulk.create_many(self, objs)

    def update_many(self, changes: Sequence[bulk.Change[O]]) -> builtins.list[O | Exception]:
        """Replace independent objects as they were read, no services; each answer is the object or what `update`
        would raise.
        """
        return bulk.update_many(self, changes)

    def delete_many(self, objs: Sequence[O], *, grace_seconds: int | None = None) -> builtins.list[O | Exception]:
        """Delete objects as they were read, by uid; each answer is what `delete` would return or raise."""
        return bulk.delete_many(self, objs, grace_seconds=grace_seconds)

    # --- heartbeats --------------------------------------------------------------------

    def put_node_lease(self, node: str, lease_id: int, seconds: int, before: Lease | None = None) -> Lease:
        """Write a node's heartbeat, which lives as long as the etcd lease: see api.types.Lease.

        `before`: what was written last, if it is to be renewed. Raises LeaseNotFound.
        """
        now = utcnow_from(self.clock.now())
        if before is None:
            spec = LeaseSpec(holder_identity=node, lease_duration_seconds=seconds, acquire_time=now)
            before = self.prepared(named(Lease(spec=spec), NODE_LEASE_NAMESPACE, node))
        lease = msgspec.structs.replace(before, spec=msgspec.structs.replace(before.spec, renew_time=now))
        commit(self.store, Write((), (Put(key_of(lease), encode(lease), lease_id),)), self.fence)
        return lease

    # --- the cluster's configuration --------------------------------------------------

    def cluster_config(self) -> ClusterConfig:
        """Raises NotFound before `init_cluster`."""
        kv = self.store.get(keys.CLUSTER_CONFIG)
        if kv is None:
            raise NotFound(f"get cluster config: {keys.CLUSTER_CONFIG} is not in the store; run podlane init")
        return decode(ClusterConfig, kv.value)

    def init_cluster(self, config: ClusterConfig, overwrite: bool = False) -> None:
        """Raises AlreadyExists, unless `overwrite`; Invalid."""
        services.Ranges.of(config)
        compare = () if overwrite else (Compare.absent(keys.CLUSTER_CONFIG),)
        write = Write(compare, (Put(keys.CLUSTER_CONFIG, encode(config)),))
        if isinstance(commit(self.store, write, self.fence), Lost):
            raise AlreadyExists(f"init cluster: {keys.CLUSTER_CONFIG} is in the store already")
        # what is there already stays
        self.create_many(list(SYSTEM_CLASSES.values()))
        self.create_many([apply_defaults(named(Namespace(), "", DEFAULT_NAMESPACE))])

    # --- inside --------------------------------------------------------------------

    def prepared(self, obj: O) -> O:
        """The object as it is first stored, but for what the store decides."""
        meta = obj.metadata
        name = meta.name or (meta.generate_name and meta.generate_name + self._suffix())
        metadata = msgspec.structs.replace(
            meta,
            name=name,
            namespace=(meta.namespace or DEFAULT_NAMESPACE) if type(obj).NAMESPACED else "",
            uid=new_uid(),
            resource_version="",
            generation=1 if hasattr(obj, "spec") else 0,
            creation_timestamp=utcnow_from(self.clock.now()),
            deletion_timestamp=None,
            deletion_grace_period_seconds=None,
        )
        if isinstance(obj, Namespace) and NAMESPACE_FINALIZER not in obj.spec.finalizers:
            spec = msgspec.structs.replace(obj.spec, finalizers=(*obj.spec.finalizers, NAMESPACE_FINALIZER))
            obj = cast(O, msgspec.structs.replace(obj, spec=spec))
        return msgspec.structs.replace(obj, kind=type(obj).KIND, api_version=type(obj).API_VERSION, metadata=metadata)

    def left_of(self, old: O, grace_seconds: int | None, propagation: Propagation | None = None) -> O | None:
        """The object as its deletion leaves it; None when it goes at once."""
        grace = grace_of(old, grace_seconds)
        return remainder(old, utcnow_from(self.clock.now() + grace), grace, propagation)

    def _read(self, cls: type[O], namespace: str, name: str) -> O:
        namespace = (namespace or DEFAULT_NAMESPACE) if cls.NAMESPACED else ""
        kv = self.store.get(keys.key_for(cls, namespace, name))
        if kv is None:
            raise NotFound(f"get {short_name(named(cls(), namespace, name))}: not found")
        return decode(cls, kv.value, revision=kv.mod_revision)

    def _create(self, new: O) -> O:
        deadline = self.deadline()
        while True:
            (outcome,) = bulk.created(self, [new])
            if isinstance(outcome, Exception):
                raise outcome
            if not isinstance(outcome, Lost):
                return outcome
            if outcome.found[key_of(new)] is not None:
                raise AlreadyExists(f"create {short_name(new)}: already exists")
            self.check(deadline)  # its namespace has changed

    def _replace(self, old: O, new: O) -> O:
        """Write `new` over `old`, which was read at its resourceVersion."""
        new = replacement(old, new)
        admission.check_default_class(self, new)
        if is_over(new):
            self._write(old, removal(old), "delete")
            return new
        if isinstance(old, Service) and isinstance(new, Service):
            return cast(O, services.replace(self, old, new))
        if new == old:
            return old
        return at_revision(new, self._write(old, change(old, new), "update"))

    def _write(self, old: Object, write: Write, action: str) -> int:
        outcome = commit(self.store, write, self.fence)
        if isinstance(outcome, Lost):
            if outcome.found[key_of(old)] is None:
                raise NotFound(f"{action} {short_name(old)}: not found")
            raise Conflict(f"{action} {short_name(old)}: it has changed since it was read")
        return outcome.revision

    def deadline(self) -> float:
        return self.clock.monotonic() + DEFAULT_TIMEOUT

    def check(self, deadline: float) -> None:
        if self.clock.monotonic() >= deadline:
            raise StoreUnavailable(f"write: others were faster for {DEFAULT_TIMEOUT} s")

    def _suffix(self) -> str:
        return "".join(self.rng.choice(NAME_LETTERS) for _ in range(5))
