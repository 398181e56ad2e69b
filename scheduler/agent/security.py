"""With which rights a container runs. Pure.

Owns: the merging of a pod's and its containers' security contexts, and the
kubelet's refusal to start as root what must not be root. Invariant: what cannot
be verified is refused. Source: DetermineEffectiveSecurityContext (pkg/securitycontext)
and verifyRunAsNonRoot (pkg/kubelet/kuberuntime/security_context_others.go).
"""

from __future__ import annotations

from podlane.api.types import Container, Pod, PodSecurityContext, SecurityContext
from scheduler.agent.environment import ConfigError
from scheduler.agent.runtime import Security


def needs_image_user(pod: Pod, container: Container) -> bool:
    """Whether `security` must be told whom the image runs as."""
    user, group, non_root = _who(pod, container)
    return user is None and (non_root or group is not None)


def security(pod: Pod, container: Container, image_user: str = "") -> Security:
    """`image_user` as the image says it ("", "app", "1000:1000"). Raises ConfigError."""
    own = container.security_context or SecurityContext()
    whole = pod.spec.security_context or PodSecurityContext()
    user, group, non_root = _who(pod, container)
    if non_root:
        _check_not_root(user, image_user)
    name = image_user.partition(":")[0]
    if user is None and group is None:
        run_as = ""
    else:
        run_as = f"{name or '0' if user is None else user}" + (f":{group}" if group is not None else "")
    groups = [*whole.supplemental_groups, *([whole.fs_group] if whole.fs_group is not None else [])]
    capabilities = own.capabilities
    return Security(
        user=run_as,
        groups=tuple(str(each) for each in dict.fromkeys(groups)),
        privileged=own.privileged,
        cap_add=capabilities.add if capabilities else (),
        cap_drop=capabilities.drop if capabilities else (),
        read_only_root=own.read_only_root_filesystem,
        no_new_privileges=own.allow_privilege_escalation is False,
    )


def _who(pod: Pod, container: Container) -> tuple[int | None, int | None, bool]:
    own = container.security_context or SecurityContext()
    whole = pod.spec.security_context or PodSecurityContext()
    user = whole.run_as_user if own.run_as_user is None else own.run_as_user
    group = whole.run_as_group if own.run_as_group is None else own.run_as_group
    non_root = whole.run_as_non_root if own.run_as_non_root is None else own.run_as_non_root
    return user, group, bool(non_root)


def _check_not_root(user: int | None, image_user: str) -> None:
    if user is not None:
        if user == 0:
            raise ConfigError("container's runAsUser breaks non-root policy")
        return
    name = image_user.partition(":")[0]
    if name in {"", "0"}:
        raise ConfigError("container has runAsNonRoot and image will run as root")
    if not name.isdecimal():
        raise ConfigError(
            f"container has runAsNonRoot and image has non-numeric user ({name}), cannot verify user is non-root"
        )
    if int(name) == 0:
        raise ConfigError("container has runAsNonRoot and image will run as root")
