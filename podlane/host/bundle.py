"""Building `podlane-VERSION.run`: everything an installation needs, in one file.

Owns: what is in it and in which order. Invariants: the same input gives the same
file (sorted names, one time, no owner); every wheel is one that requirements.lock
names by hash, plus our own; it is written at once, when it is whole. It is a shell
script (selfextract.sh) with a compressed archive behind it. See docs/adr/0023.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import platform
import re
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from podlane.errors import PodlaneError, UsageError
from podlane.host.bundlepython import copy_python
from podlane.runtime.atomic import write_atomic
from podlane.runtime.command import CommandError, run

PYTHONS = ("3.11", "3.12", "3.13")
EPOCH = 1704067200
"""Seconds: the time of every file in a bundle, unless SOURCE_DATE_EPOCH says another."""

_SOURCES = ("podlane", "netd", "proxyd", "scheduler", "bench", "pyproject.toml", "README.md", "LICENSE")
_GLIBC = ("2_28", "2_17", "2_12", "2_5")
"""Of the wheels: any Linux that has a Python of 3.11 has a newer one."""

_PIP_TIMEOUT = 900.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """`pythons` that are not `required` may be left out when something has no wheel for them."""

    version: str
    pythons: tuple[str, ...] = PYTHONS
    required: bool = False
    with_etcd: bool = False
    with_python: bool = False


def build(root: Path, wanted: Wanted, target: Path, say: Callable[[str], None]) -> Path:
    """Build from the checkout at `root` into the folder `target`. Raises PodlaneError."""
    with tempfile.TemporaryDirectory(prefix="podlane-bundle.") as scratch:
        folder = Path(scratch, "bundle")
        wheels = folder / "wheels"
        wheels.mkdir(parents=True)
        pythons = [each for each in wanted.pythons if _download(root, each, wheels, wanted, say)]
        own = _own_wheel(root, Path(scratch), wheels, wanted.version)
        say(f"wheels: {len(list(wheels.iterdir()))} for Python {', '.join(pythons)}")
        _pip_wheel(folder)
        _requirements(root, folder, own)
        shutil.copyfile(root / "podlane" / "cli" / "bundlerun.py", folder / "run.py")
        if wanted.with_etcd:
            _programs(folder, ("etcd", "etcdctl"), say)
        if wanted.with_python:
            copy_python(folder / "python", say)
        manifest = {
            "version": wanted.version,
            "pythons": pythons,
            "arch": platform.machine(),
            "etcd": wanted.with_etcd,
            "python": wanted.with_python,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        archive = compress(pack(folder))
        file = target / f"podlane-{wanted.version}.run"
        write_atomic(file, self_extracting(archive, wanted.version, pythons), mode=0o755)
        say(f"{file}: {file.stat().st_size / 1e6:.0f} MB")
    return file


# ---- Python packages -----------------------------------------------------------------------------------


def _pip(*words: str) -> None:
    environment = ("--disable-pip-version-check", "--no-input", "-q")
    run([sys.executable, "-m", "pip", words[0], *environment, *words[1:]], timeout=_PIP_TIMEOUT)


def _download(root: Path, python: str, wheels: Path, wanted: Wanted, say: Callable[[str], None]) -> bool:
    """Fetch what the lock names for one Python; False when there is no wheel for something."""
    abi = f"cp{python.replace('.', '')}"
    platforms = [f"manylinux_{glibc}_{platform.machine()}" for glibc in _GLIBC]
    places = [word for each in (*platforms, f"manylinux2014_{platform.machine()}") for word in ("--platform", each)]
    abis = [word for each in (abi, "abi3", "none") for word in ("--abi", each)]
    checked = ("--require-hashes", "--only-binary", ":all:", "--no-deps")
    only = ("--python-version", python, "--implementation", "cp", *abis, *places)
    with tempfile.TemporaryDirectory(dir=wheels.parent) as scratch:
        try:
            _pip("download", *checked, *only, "-d", scratch, "-r", str(root / "requirements.lock"))
        except CommandError as error:
            if wanted.required:
                raise
            say(f"Python {python} left out: {error.stderr.strip().splitlines()[-1] if error.stderr else error}")
            return False
        for wheel in Path(scratch).iterdir():
            shutil.move(str(wheel), wheels / wheel.name)
    return True


def _own_wheel(root: Path, scratch: Path, wheels: Path, version: str) -> Path:
    """Built from a copy, since setuptools writes beside what it builds."""
    source = scratch / "source"
    source.mkdir()
    for name in _SOURCES:
        if (root / name).is_dir():
            shutil.copytree(root / name, source / name, ignore=shutil.ignore_patterns("__pycache__", "*.egg-info"))
        else:
            shutil.copy(root / name, source / name)
    project = source / "pyproject.toml"
    project.write_text(re.sub(r'(?m)^version = ".*"$', f'version = "{version}"', project.read_text(), count=1))
    init = source / "podlane" / "__init__.py"
    init.write_text(re.sub(r'(?m)^__version__ = ".*"$', f'__version__ = "{version}"', init.read_text(), count=1))
    os.environ.setdefault("SOURCE_DATE_EPOCH", str(EPOCH))
    before = set(wheels.iterdir())
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", str(wheels), str(source))
    return next(iter(set(wheels.iterdir()) - before))


def _pip_wheel(folder: Path) -> None:
    """The pip of this environment, as a wheel that can be run from: the host needs none."""
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        import pip

        _pip("download", "--only-binary", ":all:", "--no-deps", "-d", scratch, f"pip=={pip.__version__}")
        shutil.move(str(next(Path(scratch).iterdir())), folder / "pip.whl")


def _requirements(root: Path, folder: Path, own: Path) -> None:
    name, version = own.name.split("-")[:2]
    digest = hashlib.sha256(own.read_bytes()).hexdigest()
    lock = (root / "requirements.lock").read_text().rstrip()
    (folder / "requirements.txt").write_text(f"{lock}\n{name}=={version} --hash=sha256:{digest}\n")


def _programs(folder: Path, names: Iterable[str], say: Callable[[str], None]) -> None:
    (folder / "bin").mkdir()
    for name in names:
        path = shutil.which(name)
        if path is None:
            raise UsageError(f"--with-etcd: {name} is not on this machine; install etcd-server and etcd-client")
        shutil.copy(path, folder / "bin" / name)
    say(run([str(folder / "bin" / "etcd"), "--version"], timeout=30).stdout.splitlines()[0])


# ---- the file ------------------------------------------------------------------------------------------


def pack(folder: Path) -> bytes:
    """An archive that depends on names, contents and modes only."""
    moment = int(os.environ.get("SOURCE_DATE_EPOCH", EPOCH))
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for path in sorted(folder.rglob("*")):
            info = archive.gettarinfo(str(path), str(path.relative_to(folder)))
            info.uid = info.gid = 0
            info.uname = info.gname = ""
            info.mtime = moment
            if info.islnk():  # each name gets its content, whichever comes first
                info.type, info.size = tarfile.REGTYPE, path.stat().st_size
            if info.isreg():
                info.mode = 0o755 if info.mode & 0o111 else 0o644
                with path.open("rb") as file:
                    archive.addfile(info, file)
            else:
                info.mode = 0o755
                archive.addfile(info)
    return buffer.getvalue()


def compress(archive: bytes) -> bytes:
    return gzip.compress(archive, compresslevel=6, mtime=0)


def self_extracting(archive: bytes, version: str, pythons: Sequence[str]) -> bytes:
    """The script with the archive behind it."""
    script = Path(__file__).with_name("selfextract.sh").read_text()
    values = {
        "VERSION": version,
        "DIGEST": hashlib.sha256(archive).hexdigest(),
        "SIZE": str(len(archive)),
        "ARCH": platform.machine(),
        "PYTHONS": " ".join(pythons),
    }
    for name, value in values.items():
        script = script.replace(f"@{name}@", value)
    # the number says how long the script is, and is part of it: so it has a fixed width
    length = len(script.encode()) - len("@BEGIN@") + len("0000000")
    return script.replace("@BEGIN@", f"{length + 1:07d}").encode() + archive


def version_of(root: Path) -> str:
    """As pyproject.toml has it. Raises PodlaneError."""
    import tomllib

    try:
        return str(tomllib.loads((root / "pyproject.toml").read_text())["project"]["version"])
    except (OSError, KeyError, ValueError) as error:
        raise PodlaneError(f"read {root / 'pyproject.toml'}: {error}") from error
