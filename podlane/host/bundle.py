"""Building `podlane-VERSION.run`: everything an installation needs, in one file.

Owns: what is in it and in which order. Invariants: the same input gives the same
file (sorted names, one time, no owner); every package is one that requirements.lock
names by hash, plus our own, unpacked and compiled; it is written at once, when it is whole. It is a shell
script (selfextract.sh) with a compressed archive behind it. See docs/adr/0023.
"""

from __future__ import annotations

import filecmp
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
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from podlane.errors import FieldError, Invalid, PodlaneError, UsageError
from podlane.host import bundlepython
from podlane.runtime.atomic import write_atomic
from podlane.runtime.command import CommandError, run

PYTHONS = ("3.11", "3.12", "3.13")
EPOCH = 1704067200
"""Seconds: the time of every file in a bundle, unless SOURCE_DATE_EPOCH says another."""

_SOURCES = ("podlane", "netd", "proxyd", "scheduler", "bench", "pyproject.toml", "README.md", "LICENSE")
_GLIBC = ("2_28", "2_17", "2_12", "2_5")
"""Of the wheels: any Linux that has a Python of 3.11 has a newer one."""

_PYTHON = re.compile(r"3\.(\d{1,3})", re.ASCII)
_LEAST_PYTHON = 11
_VERSION = re.compile(r"\d+(\.\d+)*((a|b|rc)\d+)?(\.post\d+)?(\.dev\d+)?(\+[a-z0-9]+(\.[a-z0-9]+)*)?", re.ASCII)
"""PEP 440; it becomes the name of a file and of a folder."""

_ETCD = ("etcd", "etcdctl")
_ONLY_FOR_BUILDING = ("bin", "setuptools*", "_distutils_hack", "distutils-precedence.pth")
_OF_PIPS = tuple(f"*.dist-info/{name}" for name in ("RECORD", "direct_url.json", "INSTALLER", "REQUESTED"))
"""They tell where it was built, and no pip ever asks for them."""

_PIP_TIMEOUT = 900.0


@dataclass(frozen=True, slots=True)
class Wanted:
    """`pythons` that are not `required` may be left out when something has no wheel for them."""

    version: str
    pythons: tuple[str, ...] = PYTHONS
    required: bool = False
    with_etcd: bool = False
    with_python: bool = False


def check(wanted: Wanted) -> None:
    """Before anything is built. Raises Invalid, UsageError."""
    errors = [
        FieldError("--python", f'expected 3.11 or later, as in 3.11,3.12, got "{each}"')
        for each in wanted.pythons
        if not (found := _PYTHON.fullmatch(each)) or int(found[1]) < _LEAST_PYTHON
    ]
    if not _VERSION.fullmatch(wanted.version):
        errors.append(FieldError("--version", f'expected a version such as 1.2.0 or 1.2.0rc1, got "{wanted.version}"'))
    if errors:
        raise Invalid("bundle", errors)
    if wanted.with_etcd and (lacking := [each for each in _ETCD if shutil.which(each) is None]):
        raise UsageError(f"--with-etcd: {lacking[0]} is not on this machine; install etcd-server and etcd-client")
    if wanted.with_python:
        bundlepython.check()


def build(root: Path, wanted: Wanted, target: Path, say: Callable[[str], None]) -> Path:
    """Build from the checkout at `root` into the folder `target`. Raises Invalid, UsageError, PodlaneError."""
    check(wanted)
    with tempfile.TemporaryDirectory(prefix="podlane-bundle.") as scratch:
        folder = Path(scratch, "bundle")
        sites = folder / "sites"
        sites.mkdir(parents=True)
        own = _own_wheel(root, Path(scratch), wanted.version)
        pythons = [
            each for each in wanted.pythons if _install(root, each, own, sites, required=wanted.required, say=say)
        ]
        compiled = [each for each in pythons if _compile(each, sites / _abi(each))]
        share(sites)
        say(f"packages for Python {', '.join(pythons)}; compiled for {', '.join(compiled) or 'none'}")
        shutil.copyfile(root / "podlane" / "cli" / "bundlerun.py", folder / "run.py")
        if wanted.with_etcd:
            _programs(folder, say)
        if wanted.with_python:
            bundlepython.copy_python(folder / "python", say)
        manifest = {
            "version": wanted.version,
            "pythons": pythons,
            "compiled": compiled,
            "arch": platform.machine(),
            "etcd": wanted.with_etcd,
            "python": wanted.with_python,
        }
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n")
        archive = compress(pack(folder))
        file = target / f"podlane-{wanted.version}.run"
        own_python = bundlepython.PROGRAM.name.removeprefix("python") if wanted.with_python else "no"
        script = self_extracting(archive, wanted.version, pythons, own_python=own_python)
        write_atomic(file, script, mode=0o755)
        say(f"{file}: {file.stat().st_size / 1e6:.0f} MB")
    return file


# ---- Python packages -----------------------------------------------------------------------------------


def _pip(*words: str) -> None:
    environment = ("--disable-pip-version-check", "--no-input", "-q")
    run([sys.executable, "-m", "pip", words[0], *environment, *words[1:]], timeout=_PIP_TIMEOUT)


def _abi(python: str) -> str:
    return f"cp{python.replace('.', '')}"


def _install(root: Path, python: str, own: Path, sites: Path, *, required: bool, say: Callable[[str], None]) -> bool:
    """Install what the lock names, and ours, for one Python; False when there is no wheel for something."""
    target = sites / _abi(python)
    platforms = [f"manylinux_{glibc}_{platform.machine()}" for glibc in _GLIBC]
    places = [word for each in (*platforms, f"manylinux2014_{platform.machine()}") for word in ("--platform", each)]
    abis = [word for each in (_abi(python), "abi3", "none") for word in ("--abi", each)]
    only = ("--only-binary", ":all:", "--python-version", python, "--implementation", "cp", *abis, *places)
    into = ("--target", str(target), "--no-deps", "--no-compile", "--root-user-action=ignore", *only)
    try:
        _pip("install", *into, "--require-hashes", "-r", str(root / "requirements.lock"))
        _pip("install", *into, "--no-index", str(own))
    except CommandError as error:
        if required:
            raise
        say(f"Python {python} left out: {error.stderr.strip().splitlines()[-1] if error.stderr else error}")
        shutil.rmtree(target, ignore_errors=True)
        return False
    for pattern in (*_ONLY_FOR_BUILDING, *_OF_PIPS):
        for path in target.glob(pattern):
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return True


def _compile(python: str, site: Path) -> bool:
    """Compile it here where that Python is here: its daemons may not write, and would do it at every start."""
    this = f"{sys.version_info[0]}.{sys.version_info[1]}"
    program = sys.executable if python == this else f"python{python}"
    # checked against nothing: a bundle's files do not change, and have no times of their own
    argv = [program, "-m", "compileall", "-q", "--invalidation-mode", "unchecked-hash", "-s", str(site), str(site)]
    try:
        run([program, "-c", "pass"], timeout=_PIP_TIMEOUT)
    except CommandError:
        return False
    run(argv, timeout=_PIP_TIMEOUT, check=False)  # what does not compile is not imported either
    return True


def share(sites: Path) -> None:
    """Move what all Pythons have alike into `any`."""
    trees = sorted(each for each in sites.iterdir() if each.is_dir())
    first, others = trees[0], trees[1:]
    for path in sorted(each for each in first.rglob("*") if each.is_file()):
        name = path.relative_to(first)
        if all((other / name).is_file() and filecmp.cmp(path, other / name, shallow=False) for other in others):
            shared = sites / "any" / name
            shared.parent.mkdir(parents=True, exist_ok=True)
            path.rename(shared)
            for other in others:
                (other / name).unlink()


def _own_wheel(root: Path, scratch: Path, version: str) -> Path:
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
    _pip("wheel", "--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", str(scratch), str(source))
    return next(scratch.glob("*.whl"))


def _programs(folder: Path, say: Callable[[str], None]) -> None:
    (folder / "bin").mkdir()
    for name in _ETCD:
        shutil.copy(str(shutil.which(name)), folder / "bin" / name)
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


def self_extracting(archive: bytes, version: str, pythons: Sequence[str], *, own_python: str = "no") -> bytes:
    """The script with the archive behind it. `own_python` is the version of the Python in it."""
    script = Path(__file__).with_name("selfextract.sh").read_text()
    values = {
        "VERSION": version,
        "DIGEST": hashlib.sha256(archive).hexdigest(),
        "SIZE": str(len(archive)),
        "ARCH": platform.machine(),
        "PYTHONS": " ".join(pythons),
        "OWN_PYTHON": own_python,
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
