"""The shape every command shares: connection options, errors, lazy loading.

Owns: what `podlane --lab x get pods` and `podlane get pods --lab x` have in
common, and how a failure looks. Invariants: a PodlaneError becomes one
`error: …` on stderr and its exit code, never a traceback; a sub-command's
module is imported only when it runs (or its own help is asked for), so that
`podlane --help` and completion stay fast.
"""

from __future__ import annotations

import importlib
import traceback
from collections.abc import Mapping, Sequence
from typing import IO, Any, NoReturn

import click
from click.core import ParameterSource

from podlane.cli.session import Given, Session
from podlane.errors import PodlaneError

EXIT_INTERRUPTED = 130
"""What a shell reports for a program that SIGINT ended."""


class Failed(click.ClickException):
    """A PodlaneError on its way out: `error:` lines on stderr, exit code 1."""

    def show(self, file: IO[Any] | None = None) -> None:
        for line in self.message.splitlines() or [""]:
            click.echo(f"error: {line}", err=True, file=file)


class Misused(Failed):
    """The same for wrong usage or invalid input."""

    exit_code = 2


def _remember(ctx: click.Context, param: click.Parameter, value: Any) -> None:
    session = ctx.ensure_object(Session)
    if value is None or value == 0 or param.name is None:
        return
    typed = ctx.get_parameter_source(param.name) is ParameterSource.COMMANDLINE
    if param.name == "verbose":
        session.verbose = max(session.verbose, value)
    else:
        session.options[param.name] = Given(value, typed)


def complete_lab(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the running labs; nothing when they cannot be told."""
    del ctx, param
    try:
        from podlane.lab.context import running

        return [name for name in running() if name.startswith(incomplete)]
    except Exception:  # whatever is wrong, a shell must not show it in the middle of a line
        return []


def complete_namespace(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[str]:
    """Names of the namespaces in the store."""
    del param
    from podlane.cli.complete import namespaces

    return namespaces(ctx, incomplete)


def connection_options(*, hidden: bool) -> list[click.Option]:
    """The options that say which cluster. Every command takes them; only the group shows them."""

    def option(*names: str, shown: bool = False, **attrs: Any) -> click.Option:
        return click.Option(
            names, expose_value=False, callback=_remember, hidden=hidden and not shown, is_eager=True, **attrs
        )

    file = click.Path(exists=True, dir_okay=False)
    return [
        option(
            "-n",
            "--namespace",
            metavar="NAME",
            shown=True,
            shell_complete=complete_namespace,
            help="Namespace of the objects (default: default).",
        ),
        option("--lab", metavar="NAME", shell_complete=complete_lab, help="Work on this lab."),
        option("--config", metavar="FILE", help="Says where etcd is; default /etc/podlane/config.yaml."),
        option(
            "--etcd-endpoints",
            metavar="URL[,URL…]",
            help="etcd's client addresses, e.g. http://10.0.0.1:2379.",
        ),
        option("--etcd-cafile", type=file, metavar="FILE", help="CA that signed etcd's certificate (PEM)."),
        option("--etcd-certfile", type=file, metavar="FILE", help="Client certificate for etcd (PEM)."),
        option("--etcd-keyfile", type=file, metavar="FILE", help="Key of the client certificate (PEM)."),
        option("--etcd-username", metavar="NAME", help="etcd user."),
        option("--etcd-password", metavar="TEXT", help="etcd password; better in PODLANE_ETCD_PASSWORD."),
        option(
            "-v",
            "--verbose",
            count=True,
            help="Say more on stderr, twice still more; with a failure, where it came from.",
        ),
    ]


EPILOG = "`podlane --help` shows the options that say which cluster; they are accepted here too."


class Command(click.Command):
    """A command on a cluster: takes the connection options as well."""

    def __init__(self, *args: Any, **attrs: Any) -> None:
        attrs.setdefault("epilog", EPILOG)
        super().__init__(*args, **attrs)
        self.params.extend(connection_options(hidden=True))

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        return super().parse_args(ctx, self._like_kubectl(args))

    def _like_kubectl(self, args: Sequence[str]) -> list[str]:
        """Accept Go's spellings of flags: `--wait=false`, `--dry-run=client`, `-o=wide`."""
        flags = {
            name: param
            for param in self.params
            if isinstance(param, click.Option) and param.is_flag
            for name in param.opts
        }
        result: list[str] = []
        for position, arg in enumerate(args):
            if arg == "--":
                result.extend(args[position:])
                break
            name, equals, value = arg.partition("=")
            if equals and name in flags:
                word = value.lower()
                if word in {"true", "1", "client"}:
                    result.append(name)
                elif word in {"false", "0", "none"}:
                    result.extend(flags[name].secondary_opts[:1])
                else:
                    raise click.BadParameter(f'expected true or false, got "{value}"', param=flags[name])
            elif equals and len(name) == len("-o") and name[0] == "-" and name[1].isalpha():
                result.extend((name, value))
            else:
                result.append(arg)
        return result


class LazyGroup(click.Group):
    """A group that knows its commands' names and one-line help without importing them.

    `lazy` maps a name to ("module:attribute", "help"); `aliases` are other names, which are not listed.
    """

    def __init__(
        self, *args: Any, lazy: Mapping[str, tuple[str, str]], aliases: Mapping[str, str] | None = None, **attrs: Any
    ) -> None:
        super().__init__(*args, **attrs)
        self.lazy = dict(lazy)
        self.aliases = dict(aliases or {})

    def list_commands(self, ctx: click.Context) -> list[str]:
        del ctx
        return list(self.lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        del ctx
        cmd_name = self.aliases.get(cmd_name, cmd_name)
        if cmd_name not in self.lazy:
            return None
        module, _, attribute = self.lazy[cmd_name][0].partition(":")
        command = getattr(importlib.import_module(module), attribute)
        assert isinstance(command, click.Command), f"{module}:{attribute} is not a click command"
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        del ctx
        with formatter.section("Commands"):
            formatter.write_dl([(name, text) for name, (_, text) in self.lazy.items()])

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, with a suggestion for a mistyped name."""
        name = args[0]
        if name not in self.lazy and name not in self.aliases and not name.startswith("-"):
            import difflib

            close = difflib.get_close_matches(name, self.lazy, n=1)
            hint = f"; did you mean {close[0]!r}?" if close else ""
            ctx.fail(f"no such command {name!r}{hint}")
        return super().resolve_command(ctx, args)

    def invoke(self, ctx: click.Context) -> Any:
        session = ctx.ensure_object(Session)
        try:
            return super().invoke(ctx)
        except PodlaneError as error:
            if session.verbose:
                traceback.print_exc()
            raise failure(str(error), error.exit_code) from error
        except KeyboardInterrupt:
            raise click.exceptions.Exit(EXIT_INTERRUPTED) from None
        finally:
            session.close()


class CommandGroup(Command, LazyGroup):
    """A command on a cluster that has sub-commands."""


def session_of(ctx: click.Context) -> Session:
    """The invocation's session (the group made it)."""
    return ctx.ensure_object(Session)


pass_session = click.make_pass_decorator(Session, ensure=True)


def failure(message: str, exit_code: int) -> Failed:
    """The exception that ends a command with `message` and this exit code (1 or 2)."""
    return Misused(message) if exit_code == Misused.exit_code else Failed(message)


def fail(message: str, exit_code: int = 1) -> NoReturn:
    """End the command with one error line."""
    raise failure(message, exit_code)


def note(text: str) -> None:
    """A line for the person, not for the pipe: stderr."""
    click.echo(text, err=True)


def warn(texts: Sequence[str]) -> None:
    for text in texts:
        note(f"warning: {text}")
