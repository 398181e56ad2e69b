from __future__ import annotations

import json
import os
import subprocess
import sys

import click
import pytest
from cli_shell import Shell, pod, rc
from click.shell_completion import ShellComplete
from click.testing import CliRunner

from podlane.api.types import Namespace, ObjectMeta
from podlane.cli.main import COMMANDS, cli
from podlane.cli.session import Session
from podlane.errors import Conflict

pytestmark = pytest.mark.unit


@pytest.fixture
def shell() -> Shell:
    shell = Shell()
    shell.add(pod("web-1", containers=2), pod("web-2"), rc(), Namespace(metadata=ObjectMeta(name="shop")))
    return shell


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help(name):
    result = CliRunner().invoke(cli, [name, "--help"], prog_name="podlane")
    assert result.exit_code == 0
    assert f"Usage: podlane {name}" in result.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_has_a_help_text(name):
    ctx = click.Context(cli)
    command = cli.get_command(ctx, name)
    assert command is not None
    pending = [command]
    while pending:
        current = pending.pop()
        if isinstance(current, click.Group):
            pending += [sub for sub in (current.get_command(ctx, n) for n in current.list_commands(ctx)) if sub]
        silent = [p.name for p in current.params if isinstance(p, click.Option) and not p.help]
        assert silent == [], current.name


def test_help_and_completion_of_commands_load_none_of_them():
    """The start-up time is that of click: neither the commands nor what they need are imported."""
    script = (
        "import sys\n"
        "from podlane.cli.main import cli\n"
        "cli.main(['--help'], prog_name='podlane', standalone_mode=False)\n"
        "heavy = {'msgspec', 'yaml', 'grpc', 'structlog', 'rich', 'docker', 'prometheus_client', 'pyroute2'}\n"
        "loaded = sorted(m for m in sys.modules if m.startswith('podlane.') or m in heavy)\n"
        "print(loaded, file=sys.stderr)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=30)
    assert done.stderr.strip() == str(
        ["podlane.cli", "podlane.cli.command", "podlane.cli.main", "podlane.cli.session", "podlane.errors"]
    )


def test_a_mistyped_command():
    result = CliRunner().invoke(cli, ["aply"], prog_name="podlane")
    assert result.exit_code == 2
    assert "no such command 'aply'; did you mean 'apply'?" in result.stderr


def test_version():
    assert CliRunner().invoke(cli, ["version"]).stdout.startswith("podlane ")
    shown = json.loads(CliRunner().invoke(cli, ["version", "-o", "json"]).stdout)
    assert shown["clientVersion"]["gitVersion"].startswith("v")


def session_that(error: BaseException) -> Session:
    def connect(_):
        raise error

    return Session(connect=connect)


def test_an_error_is_a_line_and_a_traceback_only_on_demand():
    error = Conflict("update pod/x: changed")
    result = CliRunner().invoke(cli, ["get", "pods"], obj=session_that(error))
    assert (result.exit_code, result.stdout, result.stderr) == (1, "", "error: update pod/x: changed\n")
    result = CliRunner().invoke(cli, ["get", "pods", "-v"], obj=session_that(error))
    assert "Traceback" in result.stderr
    assert result.stderr.endswith("error: update pod/x: changed\n")


def test_ctrl_c_is_quiet():
    result = CliRunner().invoke(cli, ["get", "pods"], obj=session_that(KeyboardInterrupt()))
    assert (result.exit_code, result.output) == (130, "")


@pytest.mark.parametrize(
    "args", [["--lab", "x", "get", "pods"], ["get", "pods", "--lab", "x"], ["get", "--lab=x", "pods"]]
)
def test_connection_options_may_stand_anywhere(args):
    seen = {}

    def connect(options):
        seen.update(options)
        raise Conflict("far enough")

    CliRunner().invoke(cli, args, obj=Session(connect=connect))
    assert (seen["lab"].value, seen["lab"].typed) == ("x", True)


def test_options_from_the_environment():
    seen = {}

    def connect(options):
        seen.update(options)
        raise Conflict("far enough")

    variables = {"PODLANE_ETCD_ENDPOINTS": "http://e:1", "PODLANE_ETCD_PASSWORD": "p", "PODLANE_LAB": ""}
    CliRunner().invoke(cli, ["get", "pods"], obj=Session(connect=connect), env=variables)
    assert seen["etcd_endpoints"].value == "http://e:1"
    assert not seen["etcd_endpoints"].typed
    assert seen["etcd_password"].value == "p"
    assert "lab" not in seen


def test_commands_options_have_environment_variables(shell):
    assert shell.ok("get", "rc", env={"PODLANE_GET_OUTPUT": "name"}) == "replicationcontroller/web\n"


@pytest.mark.parametrize(
    ("flag", "exit_code"), [("--no-headers=true", 0), ("--no-headers=false", 0), ("--no-headers=maybe", 2)]
)
def test_go_spellings_of_flags(shell, flag, exit_code):
    result = shell.run("get", "pods", flag)
    assert result.exit_code == exit_code
    assert result.stdout.startswith("NAME") == (flag == "--no-headers=false")


def test_the_store_is_closed(shell):
    closed = []

    class Closing:
        def __getattr__(self, name):
            return getattr(shell.store, name)

        def close(self):
            closed.append(True)

    CliRunner().invoke(cli, ["get", "pods"], obj=Session(connect=lambda _: Closing(), clock=shell.clock))
    assert closed == [True]


def test_a_reader_that_leaves_early_gets_no_traceback():
    """`podlane … | head -1`: the pipe is closed before anything is written."""
    reader, writer = os.pipe()
    os.close(reader)
    argv = [sys.executable, "-m", "podlane.cli.main", "completion", "bash"]
    done = subprocess.run(argv, stdout=writer, stderr=subprocess.PIPE, text=True, check=False, timeout=30)
    os.close(writer)
    assert done.stderr == ""
    assert done.returncode == 1


# --- completion -------------------------------------------------------------------------


def complete(shell: Shell, *words: str, session: Session | None = None) -> list[str]:
    *args, incomplete = words
    completer = ShellComplete(cli, {"obj": session or shell.session()}, "podlane", "_PODLANE_COMPLETE")
    return [item.value for item in completer.get_completions(args, incomplete)]


@pytest.mark.parametrize("name", ["bash", "zsh", "fish"])
def test_completion_scripts(name):
    result = CliRunner().invoke(cli, ["completion", name])
    assert result.exit_code == 0
    assert f"_PODLANE_COMPLETE={name}_complete" in result.stdout


def test_completes_commands_kinds_and_names(shell):
    assert complete(shell, "des") == ["describe"]
    assert complete(shell, "get", "po") == ["pods", "pod"]
    assert complete(shell, "get", "pods,repl")[0] == "pods,replicationcontrollers"
    assert complete(shell, "get", "pods", "web") == ["web-1", "web-2"]
    assert complete(shell, "get", "rc/") == ["rc/web"]
    assert complete(shell, "delete", "pod/web-2", "pod/web") == ["pod/web-1", "pod/web-2"]
    assert complete(shell, "logs", "") == ["web-1", "web-2"]
    assert complete(shell, "exec", "web-1", "-c", "") == ["web", "log"]
    assert complete(shell, "scale", "") == ["rc/web"]
    assert complete(shell, "get", "pods", "-n", "") == ["default", "shop"]
    assert complete(shell, "get", "pods", "-n", "shop", "") == []


def test_completion_without_a_store_is_silent(shell, capsys):
    assert complete(shell, "get", "pods", "", session=session_that(Conflict("no"))) == []
    shell.store.faults.set_down(True)
    assert complete(shell, "get", "pods", "") == []
    assert complete(shell, "get", "nonsense", "") == []
    assert capsys.readouterr() == ("", "")
