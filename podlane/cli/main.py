"""`podlane`: the operator's command.

Owns: the list of sub-commands and nothing else; each lives in a module that is
imported when it runs. Words, flags and columns are kubectl's where kubectl has
them. Exit codes: 0 done, 1 failed, 2 wrong usage or invalid input; `exec`
passes on the command's own.
"""

from __future__ import annotations

import click

from podlane.cli.command import LazyGroup, connection_options
from podlane.cli.session import Session

COMMANDS: dict[str, tuple[str, str]] = {
    "apply": ("podlane.cli.apply:apply", "Create or change objects from manifests."),
    "create": (
        "podlane.cli.create:create",
        "Create objects from manifests or the command line; an existing one is an error.",
    ),
    "get": ("podlane.cli.get:get", "List objects."),
    "describe": ("podlane.cli.describe:describe", "Show objects in detail, with their events."),
    "delete": ("podlane.cli.delete:delete", "Delete objects by name, label or manifest."),
    "scale": ("podlane.cli.scale:scale", "Change the replicas of a replication controller."),
    "rolling-update": (
        "podlane.cli.rollingupdate:rolling_update",
        "Replace a replication controller's pods by those of a new one, a few at a time.",
    ),
    "label": ("podlane.cli.label:label", "Set or remove labels."),
    "logs": ("podlane.cli.logs:logs", "Print the output of a container."),
    "exec": ("podlane.cli.exec:exec_", "Run a command in a container."),
    "top": ("podlane.cli.top:top", "Show what pods or nodes use of CPU and memory."),
    "events": ("podlane.cli.events:events", "List events, oldest first."),
    "cordon": ("podlane.cli.nodes:cordon", "Mark nodes unschedulable."),
    "uncordon": ("podlane.cli.nodes:uncordon", "Mark nodes schedulable."),
    "taint": ("podlane.cli.nodes:taint", "Set or remove taints, which keep pods away from nodes."),
    "drain": ("podlane.cli.drain:drain", "Cordon nodes and move their pods elsewhere."),
    "init": ("podlane.cli.init:init", "Write the network and cluster configuration into etcd."),
    "preflight": ("podlane.cli.preflight:preflight", "Say what this machine lacks to run Podlane."),
    "host": ("podlane.cli.host:host", "Install, upgrade or remove Podlane on this machine."),
    "pki": ("podlane.cli.pki:pki", "Look after the cluster's authority: init, issue, list, rotate, revoke."),
    "etcd": ("podlane.cli.etcd:etcd", "Look after the store: its members, disk and snapshots."),
    "cloud-init": ("podlane.cli.cloudinit:cloud_init", "Print user-data that installs Podlane at first boot."),
    "join-token": ("podlane.cli.jointoken:join_token", "Let another host join: print the line to paste there."),
    "lab": ("podlane.cli.lab:lab", "Run a whole cluster on this machine: up, status, demo, down."),
    "completion": ("podlane.cli.completion:completion", "Print the completion script for a shell."),
    "version": ("podlane.cli.version:version", "Print the version."),
}


@click.command(
    "podlane",
    cls=LazyGroup,
    lazy=COMMANDS,
    params=list(connection_options(hidden=False)),
    context_settings={
        "auto_envvar_prefix": "PODLANE",
        "help_option_names": ["-h", "--help"],
        "max_content_width": 100,
        "show_default": False,
    },
    epilog="Every option has an environment variable: --lab is PODLANE_LAB, get -o is PODLANE_GET_OUTPUT.",
)
@click.pass_context
def cli(ctx: click.Context) -> None:
    """Operate a Podlane cluster.

    Which cluster: --etcd-endpoints or --lab; else /etc/podlane/config.yaml;
    else the one lab that runs on this machine.
    """
    ctx.ensure_object(Session)


def main() -> None:
    """The console script."""
    cli.main(prog_name="podlane")


if __name__ == "__main__":
    main()
