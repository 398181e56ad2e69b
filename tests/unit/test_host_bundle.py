"""The self-extracting file: the same input, the same file; damage is seen; it cleans up behind itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from podlane.errors import Invalid
from podlane.host.bundle import Wanted, check, compress, pack, self_extracting, share, version_of

pytestmark = pytest.mark.unit

ROOT = Path(__file__).resolve().parents[2]
PYTHON = f"{sys.version_info[0]}.{sys.version_info[1]}"
ABI = f"cp{PYTHON.replace('.', '')}"
PROGRAM = """\
import os, pathlib, sys
bundle = pathlib.Path(os.environ["PODLANE_BUNDLE"])
print(sys.argv[1:], os.environ["PODLANE_BUNDLE_ABI"], os.environ["PODLANE_BUNDLE_OWN_PYTHON"])
print(sorted(path.name for path in (bundle / "site").iterdir()), sorted(path.name for path in bundle.iterdir()))
sys.exit(7)
"""


def content(folder: Path) -> Path:
    folder.mkdir()
    (folder / "run.py").write_text(PROGRAM)
    (folder / "data").write_text("packages")
    for name in ("any/pure.py", f"{ABI}/compiled.so", "cp27/other.so"):
        (folder / "sites" / name).parent.mkdir(parents=True)
        (folder / "sites" / name).write_text("")
    (folder / "bin").mkdir()
    (folder / "bin" / "etcd").write_text("#!/bin/sh\n")
    (folder / "bin" / "etcd").chmod(0o755)
    return folder


@pytest.fixture
def bundle(tmp_path: Path) -> Path:
    file = tmp_path / "podlane-1.0.0.run"
    file.write_bytes(self_extracting(compress(pack(content(tmp_path / "in"))), "1.0.0", ["2.7", PYTHON]))
    return file


def sh(file: Path, *words: str) -> subprocess.CompletedProcess[str]:
    scratch = file.with_name("scratch")
    scratch.mkdir(exist_ok=True)
    environment = {"PATH": "/usr/sbin:/usr/bin:/sbin:/bin", "TMPDIR": str(scratch), "PODLANE_PYTHON": sys.executable}
    done = subprocess.run(
        ["sh", file, *words], capture_output=True, text=True, timeout=60, check=False, env=environment
    )
    assert list(scratch.iterdir()) == []
    return done


def test_what_cannot_be_built_is_told_at_once() -> None:
    check(Wanted("1.2.0", ("3.11", "3.14")))
    check(Wanted("1.2.0rc1.post2.dev3+g12ab", ("3.12",)))
    for version in ("", "v1", "1.2.x", "1/2", "1 2"):
        with pytest.raises(Invalid, match="--version: expected a version such as"):
            check(Wanted(version))
    for python in ("3", "3.10", "2.7", "three", ""):
        with pytest.raises(Invalid, match="--python: expected"):
            check(Wanted("1.2.0", ("3.11", python)))


def test_it_unpacks_runs_and_cleans_up(bundle: Path) -> None:
    done = sh(bundle, "install", "--role", "all")
    assert done.stdout == (
        f"['install', '--role', 'all'] {PYTHON} no\n['compiled.so', 'pure.py'] ['bin', 'data', 'run.py', 'site']\n"
    )
    assert done.returncode == 7


def test_what_it_says_of_itself(bundle: Path) -> None:
    assert sh(bundle, "version").stdout == "1.0.0\n"
    assert sh(bundle, "check").stdout == f"{bundle}: good\n"
    assert sh(bundle).returncode == 2
    wrong = sh(bundle, "frob")
    assert wrong.returncode == 2
    assert wrong.stderr.startswith("error: unknown command 'frob'\nusage: ")


def test_it_can_be_unpacked(bundle: Path, tmp_path: Path) -> None:
    assert sh(bundle, "extract", str(tmp_path / "out")).returncode == 0
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["bin", "data", "run.py", "sites"]
    assert (tmp_path / "out" / "bin" / "etcd").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("command", ["install", "check", "extract"])
def test_damage_is_seen_before_anything_is_unpacked(bundle: Path, command: str) -> None:
    whole = bundle.read_bytes()
    for damaged in (whole[:-1], whole[:-20] + bytes([whole[-20] ^ 1]) + whole[-19:]):
        bundle.write_bytes(damaged)
        done = sh(bundle, command, *(["/nowhere"] if command == "extract" else []))
        assert done.returncode == 1
        assert "it is damaged: expected SHA-256" in done.stderr
        assert done.stdout == ""


def test_a_python_it_has_no_packages_for_is_none(tmp_path: Path) -> None:
    file = tmp_path / "other.run"
    file.write_bytes(self_extracting(compress(pack(content(tmp_path / "in"))), "1.0.0", ["2.7"]))
    done = sh(file, "install")
    assert done.returncode == 1
    assert "this file has packages for Python 2.7, and none of them is here" in done.stderr


def test_what_all_pythons_have_alike_is_there_once(tmp_path: Path) -> None:
    for abi in ("cp311", "cp312"):
        (tmp_path / abi / "click").mkdir(parents=True)
        (tmp_path / abi / "click" / "core.py").write_text("the same")
        (tmp_path / abi / "RECORD").write_text(abi)
    (tmp_path / "cp311" / "click" / "core.cpython-311.pyc").write_text("")
    share(tmp_path)
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == [
        "any/click/core.py",
        "cp311/RECORD",
        "cp311/click/core.cpython-311.pyc",
        "cp312/RECORD",
    ]


def test_the_same_input_is_the_same_file(tmp_path: Path) -> None:
    one, two = content(tmp_path / "one"), content(tmp_path / "two")
    for path in two.rglob("*"):
        os.utime(path, (1, 1))
    (two / "data").chmod(0o600)
    assert pack(one) == pack(two)


def test_the_version_is_the_projects(tmp_path: Path) -> None:
    assert version_of(ROOT)[0].isdigit()
    assert (ROOT / "podlane" / "__init__.py").read_text().endswith(f'__version__ = "{version_of(ROOT)}"\n')
