"""What follows on this host from a renewal: settings and restarts.

Owns: the systemctl calls. Invariant: one daemon after another, and the next only when the
one before is up again (a notify unit's restart ends when it is ready); what does not run is
not started.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from podlane.errors import ApplyError
from podlane.host.layout import ORDER, PKI, Daemon, credentials, unit_name
from podlane.host.renew import Renewed, restarts
from podlane.host.settings import cluster_file
from podlane.host.units import loaded_files
from podlane.runtime.atomic import write_atomic
from podlane.runtime.command import CommandError, run

_RESTART_SECONDS = 300.0


def write_endpoints(endpoints: tuple[str, ...]) -> None:
    """Where etcd is, for this host's daemons; only where `install` has written it. Raises PodlaneError."""
    file = cluster_file(endpoints)
    if Path(file.path).exists():
        write_atomic(file.path, file.content, file.mode)


def restart_stale(renewed: Renewed, say: Callable[[str], None], folder: Path = Path(PKI)) -> None:
    """Raises ApplyError when one does not come up; the others are restarted all the same."""
    failures: list[tuple[str, Exception]] = []
    running = [each for each in ORDER if _runs(unit_name(each))]
    for daemon in restarts(renewed, running, [each for each in running if _works_with_old_copies(each, folder)]):
        try:
            run(["systemctl", "try-restart", unit_name(daemon)], timeout=_RESTART_SECONDS)
            say(f"restarted {unit_name(daemon)}")
        except CommandError as error:
            failures.append((f"restart {unit_name(daemon)}", error))
    if failures:
        raise ApplyError(failures)


def _works_with_old_copies(daemon: Daemon, folder: Path) -> bool:
    """Whether what systemd gave it at its start (LoadCredential) is not what the files say now."""
    try:
        return any(
            (Path(credentials(daemon)) / name).read_bytes() != (folder / name).read_bytes()
            for name in loaded_files(daemon)
        )
    except OSError:  # a systemd that shows them to nobody: then only what has just changed counts
        return False


def _runs(unit: str) -> bool:
    try:
        return run(["systemctl", "is-active", "--quiet", unit], timeout=30, check=False).returncode == 0
    except CommandError:  # no systemd
        return False
