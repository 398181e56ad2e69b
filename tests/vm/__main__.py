"""`./appliance vmtest`: a cluster on virtual machines, from their first boot to a node that leaves."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
import sys
from collections.abc import Callable
from pathlib import Path

import click

from podlane.errors import PodlaneError
from podlane.runtime.clock import SystemClock
from tests.vm import image, progress
from tests.vm.cluster import Cluster, FileServer, machines
from tests.vm.machine import Emulator
from tests.vm.recipe import Recipe
from tests.vm.story import Story

CACHE = Path("/var/cache/podlane-vmtest")


def _say(text: str) -> None:
    click.echo(text, err=True)


@click.command(context_settings={"help_option_names": ["-h", "--help"]})
@click.option("--vms", type=click.IntRange(2, 9), default=3, show_default=True, help="How many machines.")
@click.option("--keep", is_flag=True, help="Leave the machines running at the end.")
@click.option("--resume", is_flag=True, help="Go on with the last run: what was seen is not done again.")
@click.option("--only", multiple=True, metavar="STEP", help="Only this step of the last run; repeatable.")
@click.option("-o", "--output", type=click.Choice(["table", "json"]), default="table", show_default=True)
@click.option(
    "--cache",
    type=click.Path(file_okay=False, path_type=Path),
    default=CACHE,
    show_default=True,
    help="Where the image and the machines are kept.",
)
@click.option("--bundle", default="", metavar="FILE", help="Install this one.  [default: ./appliance bundle makes it]")
@click.option("--mirror", default="", metavar="URL", help="Debian's packages.  [default: what apt uses here]")
@click.option(
    "--accel",
    type=click.Choice(["tcg", "kvm"]),
    default="tcg",
    show_default=True,
    help="tcg: emulated, works anywhere.",
)
@click.option("--cpus", type=click.IntRange(1, 8), default=1, show_default=True, help="Processors of each machine.")
@click.option("--exec", "exec_", default="", metavar="MACHINE", help="Run COMMAND on a machine of the last run.")
@click.option("--down", is_flag=True, help="End the machines of the last run and remove them.")
@click.argument("command", nargs=-1)
def main(**given: object) -> None:
    """Boot virtual machines, make a cluster of them, break it, and see that it mends itself.

    Exit code 0 only if everything was seen. Progress goes to standard error;
    logs of the machines are in CACHE/run.
    """
    try:
        sys.exit(_run(**given))  # type: ignore[arg-type]
    except PodlaneError as error:
        _say(f"error: {error}")
        sys.exit(error.exit_code)


def _run(
    *,
    vms: int,
    keep: bool,
    resume: bool,
    only: tuple[str, ...],
    output: str,
    cache: Path,
    bundle: str,
    mirror: str,
    accel: str,
    cpus: int,
    exec_: str,
    down: bool,
    command: tuple[str, ...],
) -> int:
    if os.geteuid() != 0:
        raise PodlaneError("vmtest: needs root, to make the machines' disk")
    cache.mkdir(parents=True, exist_ok=True)
    folder = cache / "run"
    recipe = Recipe(image.machine_sources(mirror))
    built = image.Image(cache / f"image-{recipe.key}")
    if exec_ or down:
        hosts = machines(folder, 9)
        return _exec(hosts, exec_, command) if exec_ else _down(hosts, folder)
    with (cache / "lock").open("w") as lock:
        _lock(lock.fileno(), cache)
        again = resume or bool(only)
        if not again:
            _down(machines(folder, 9), folder)
        folder.mkdir(exist_ok=True)
        settings = _settings(folder, vms)
        say: Callable[[str], None] = _say
        steps_memory = progress.Progress(folder / "steps.json", SystemClock(), say)
        cluster = Cluster(
            machines(folder, settings["vms"]), Emulator(built, settings["wire"], accel, cpus), steps_memory.note
        )
        served = folder / "files"
        served.mkdir(exist_ok=True)
        story = Story(cluster, recipe, cache, folder, FileServer(served, settings["http"]), steps_memory.note, bundle)
        try:
            if again:
                cluster.boot_all()
            outcomes = steps_memory.run(story.steps(), only=only)
        finally:
            if not keep:
                cluster.end()
    click.echo(progress.report(outcomes) if output == "json" else progress.table(outcomes))
    return 0 if progress.succeeded(outcomes) else 1


def _settings(folder: Path, vms: int) -> dict[str, int]:
    """What must stay the same when a run is resumed: the number of machines, and ports that were free."""
    file = folder / "settings.json"
    if not file.exists():
        file.write_text(json.dumps({"vms": vms, "wire": _free_port(), "http": _free_port()}))
    settings: dict[str, int] = json.loads(file.read_text())
    return settings


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _lock(file: int, cache: Path) -> None:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise PodlaneError(f"vmtest: another run is using {cache}; give this one another --cache") from None


def _down(hosts: tuple[object, ...], folder: Path) -> int:
    from tests.vm.machine import Machine, kill

    for host in hosts:
        assert isinstance(host, Machine)
        kill(host)
    shutil.rmtree(folder, ignore_errors=True)
    return 0


def _exec(hosts: tuple[object, ...], name: str, command: tuple[str, ...]) -> int:
    from tests.vm.machine import Machine

    for host in hosts:
        assert isinstance(host, Machine)
        if host.name == name:
            done = host.guest.run(" ".join(command), timeout=3600, check=False)
            click.echo(done.stdout, nl=False)
            click.echo(done.stderr, nl=False, err=True)
            return done.returncode
    raise PodlaneError(f"--exec {name}: no such machine; there are {', '.join(str(h) for h in hosts)}")


if __name__ == "__main__":
    main(prog_name="./appliance vmtest")
