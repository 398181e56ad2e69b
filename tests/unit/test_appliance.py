"""What can be known of the bootstrap without installing anything, and of the files it reads."""

from __future__ import annotations

import itertools
import re
import subprocess
import tomllib
from pathlib import Path

import pytest

pytestmark = pytest.mark.unit

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parents[2]
LOCKS = ["requirements.lock", "requirements-dev.lock"]


def appliance(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [ROOT / "appliance", *words], capture_output=True, text=True, timeout=60, check=False, cwd="/"
    )


def test_help() -> None:
    done = appliance("help")
    assert done.returncode == 0
    assert done.stdout.startswith("usage: ./appliance COMMAND")
    assert done.stderr == ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "a command is missing"),
        (("frob",), "unknown command 'frob'"),
        (("venv", "now"), "venv takes no arguments"),
        (("test", "--level"), "--level: a level is missing"),
        (("test", "--level=fast"), "--level: expected unit, contract, kernel, e2e or lint, got 'fast'"),
    ],
)
def test_misuse_is_told_before_anything_is_done(words: tuple[str, ...], message: str) -> None:
    done = appliance(*words)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.startswith(f"appliance: {message}\nusage: ")


def test_the_kernel_is_tried_in_the_same_way_with_and_without_python() -> None:
    from podlane.host.trykernel import SCRIPT

    assert f"unshare --net --mount sh -c '\n{SCRIPT}    ' 2>&1" in (ROOT / "appliance").read_text()


def test_what_is_behind_the_bundle_is_plain_sh() -> None:
    subprocess.run(["sh", "-n", ROOT / "podlane" / "host" / "selfextract.sh"], check=True, timeout=30)


def test_the_scripts_are_plain_sh_and_can_be_run() -> None:
    for script in ("appliance", ".ci/run"):
        path = ROOT / script
        assert path.stat().st_mode & 0o111 == 0o111
        assert path.read_text().startswith("#!/bin/sh\n")
        subprocess.run(["sh", "-n", path], check=True, timeout=30)


@pytest.mark.parametrize("name", LOCKS)
def test_a_lock_file_pins_by_hash_and_holds_no_address(name: str) -> None:
    lines = (ROOT / name).read_text().splitlines()
    assert lines[0].startswith("# Made by pip-compile")
    for line in lines[1:]:
        assert re.fullmatch(r"[a-z0-9.-]+==\S+ \\|    --hash=sha256:[0-9a-f]{64}( \\)?|", line), line
    for first, second in itertools.pairwise(lines):
        if "==" in first:
            assert "--hash=" in second, f"{first} is pinned without a hash"


def test_the_lock_files_cover_what_we_need_and_agree() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    runtime, dev = (dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", (ROOT / n).read_text(), re.MULTILINE)) for n in LOCKS)
    needed = project["project"]["dependencies"] + project["build-system"]["requires"]
    assert {_name(r) for r in needed} <= set(runtime)
    assert {_name(r) for r in project["project"]["optional-dependencies"]["dev"]} <= set(dev)
    assert runtime.items() <= dev.items()


def _name(requirement: str) -> str:
    found = re.match(r"[A-Za-z0-9._-]+", requirement)
    assert found is not None
    return re.sub(r"[-_.]+", "-", found[0]).lower()


SKIPPING = """
    import pytest

    def test_runs(): pass
    def test_skips(): pytest.skip("no such kernel")
    @pytest.mark.skipif(True, reason="not today")
    def test_marked(): pass
    @pytest.mark.xfail(reason="known", strict=True)
    def test_expected(): assert False
"""


@pytest.mark.parametrize(("level", "refused"), [("unit", 0), ("contract", 1), ("kernel", 1), ("e2e", 1)])
def test_no_skips_turns_skips_into_failures(pytester: pytest.Pytester, level: str, refused: int) -> None:
    folder = pytester.path / "tests" / level
    folder.mkdir(parents=True)
    pytester.makepyfile(**{f"tests/{level}/test_some": SKIPPING})
    result = pytester.runpytest_inprocess("-p", "tests.no_skips")
    # one skips while it runs (a failure), one before (an error)
    result.assert_outcomes(passed=1, xfailed=1, failed=refused, errors=refused, skipped=2 - 2 * refused)
    if refused:
        result.stdout.fnmatch_lines(["*skipped, which is not allowed here: Skipped: no such kernel*"])
        result.stdout.fnmatch_lines(["*skipped, which is not allowed here: Skipped: not today*"])


def test_no_skips_sees_a_whole_file_that_skips(pytester: pytest.Pytester) -> None:
    (pytester.path / "tests" / "kernel").mkdir(parents=True)
    pytester.makepyfile(**{"tests/kernel/test_all": "import pytest\npytest.importorskip('no_such_module')\n"})
    result = pytester.runpytest_inprocess("-p", "tests.no_skips")
    result.assert_outcomes(errors=1)
    assert result.ret != 0
