"""`podlane host`: what concerns the machine it runs on, not the cluster.

Owns: the list of its sub-commands; each lives in a module that is imported when
it runs. The bundle's `install`, `upgrade`, `uninstall` and `preflight` are these.
"""

from __future__ import annotations

import click

from podlane.cli.command import LazyGroup

COMMANDS: dict[str, tuple[str, str]] = {
    "install": ("podlane.cli.hostinstall:install", "Make this machine a server, a node, or both."),
    "upgrade": ("podlane.cli.hostupgrade:upgrade", "Replace the installed version by the bundle's; traffic goes on."),
    "uninstall": ("podlane.cli.hostuninstall:uninstall", "Remove Podlane from this machine."),
    "keys": ("podlane.cli.hostkeys:keys", "Make the keys and certificates that a server lacks."),
    "enrol": ("podlane.cli.hostkeys:enrol", "Make etcd's roles and users for this machine."),
    "join": ("podlane.cli.hostkeys:join", "Join a cluster with a token, without installing anything."),
    "join-serve": ("podlane.cli.hostjoin:join_serve", "Answer nodes that join with a token."),
    "renew": ("podlane.cli.hostjoin:renew", "Renew this machine's certificates that end soon."),
}


@click.group("host", cls=LazyGroup, lazy=COMMANDS)
def host() -> None:
    """Work on this machine: install, upgrade, uninstall, renew its certificates. Needs root."""
