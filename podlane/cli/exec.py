"""`podlane exec`: a command in a container, as if it ran here."""

from __future__ import annotations

from contextlib import ExitStack

import click

from podlane.cli.command import Command, note, pass_session
from podlane.cli.complete import containers as complete_containers
from podlane.cli.complete import pods as complete_pods
from podlane.cli.session import Session
from podlane.errors import UsageError


class _ExecCommand(Command):
    """Keeps what follows `--` apart: it is the container's business."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        if "--" in args:
            split = args.index("--")
            ctx.meta["command"] = tuple(args[split + 1 :])
            args = args[:split]
        return super().parse_args(ctx, args)


@click.command("exec", cls=_ExecCommand, options_metavar="[OPTIONS]")
@click.argument("pod", metavar="POD|TYPE/NAME [-- COMMAND [ARGS…]]", shell_complete=complete_pods)
@click.option("-c", "--container", metavar="NAME", shell_complete=complete_containers, help="Default: the first.")
@click.option("-i", "--stdin", is_flag=True, help="Pass standard input to the command.")
@click.option("-t", "--tty", is_flag=True, help="Give the command a terminal.")
@click.pass_context
@pass_session
def exec_(session: Session, ctx: click.Context, *, pod: str, container: str | None, stdin: bool, tty: bool) -> None:
    """Run a command in a container; its exit code is this command's.

    \b
    podlane exec web-1 -- cat /etc/hostname
    podlane exec -it web-1 -c web -- sh
    """  # noqa: D301 - \b is click's mark for a paragraph that is not to be wrapped
    from podlane.cli.podtarget import agent_of, container_of, find_pod
    from podlane.cli.terminal import follow_size, raw_mode, relay, stdin_is_terminal

    command: tuple[str, ...] = ctx.meta.get("command", ())
    if not command:
        raise UsageError("command: missing; it follows --, e.g. podlane exec web-1 -- ls")
    target = container_of(find_pod(session, pod), container)
    metadata = target.pod.metadata
    if tty and not stdin_is_terminal():
        note("warning: standard input is no terminal; going on without one")
        tty = False
    running = agent_of(session, target.pod).exec(
        metadata.namespace, metadata.name, target.container, command, tty=tty, stdin=stdin
    )
    with ExitStack() as stack:
        if tty:
            stack.enter_context(raw_mode())
            stack.enter_context(follow_size(running))
        code = relay(running, stdin=stdin)
    ctx.exit(code)
