"""`podlane completion`: the shell's side of TAB, which click generates."""

from __future__ import annotations

import click

from podlane.cli.command import Command, fail

SHELLS = ("bash", "zsh", "fish")


@click.command("completion", cls=Command)
@click.argument("shell", type=click.Choice(SHELLS))
@click.pass_context
def completion(ctx: click.Context, shell: str) -> None:
    """Print the completion script for a shell.

    \b
    bash:  source <(podlane completion bash)
    zsh:   source <(podlane completion zsh)
    fish:  podlane completion fish | source
    """  # noqa: D301 - \b is click's mark for a paragraph that is not to be wrapped
    from click.shell_completion import get_completion_class

    shell_class = get_completion_class(shell)
    if shell_class is None:
        fail(f"completion for {shell}: not known to this version of click")
    click.echo(shell_class(ctx.find_root().command, {}, "podlane", "_PODLANE_COMPLETE").source())
