"""etcd's users and roles in memory, as far as enrolment needs them."""

from __future__ import annotations

from collections.abc import Collection

from podlane.store.roles import Role


class FakeAccounts:
    """Refuses what etcd refuses: a user with a role that is not there. `fail_at` interrupts the n-th call."""

    def __init__(self) -> None:
        self.users: dict[str, set[str]] = {}
        self.roles: dict[str, Role] = {"root": Role("root")}
        self.calls = 0
        self.fail_at = 0

    def ensure_role(self, role: Role) -> None:
        self._call()
        self.roles[role.name] = role

    def ensure_user(self, name: str, role_names: Collection[str]) -> None:
        self._call()
        assert set(role_names) <= self.roles.keys(), f"{name} wants {role_names}, there are {set(self.roles)}"
        self.users[name] = set(role_names)

    def delete_user(self, name: str) -> None:
        self._call()
        self.users.pop(name, None)

    def delete_role(self, name: str) -> None:
        self._call()
        self.roles.pop(name, None)
        for roles in self.users.values():
            roles.discard(name)

    def _call(self) -> None:
        self.calls += 1
        if self.calls == self.fail_at:
            raise InterruptedError(f"at call {self.calls}")
