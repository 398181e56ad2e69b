"""The pure parts of tests/vm."""

from __future__ import annotations

import json
import shlex
from dataclasses import replace
from pathlib import Path

import pytest

from podlane.errors import PodlaneError, UsageError
from podlane.runtime.clock import FakeClock
from tests.vm import progress, seed
from tests.vm.cluster import machines
from tests.vm.guest import completed
from tests.vm.image import Image
from tests.vm.machine import Emulator, pid_of
from tests.vm.progress import Progress, Step
from tests.vm.recipe import Recipe, sources_from_apt
from tests.vm.traffic import counted

pytestmark = pytest.mark.unit

RECIPE = Recipe((("http://mirror.example/debian/", "bookworm", "main"),))


# --- the image ------------------------------------------------------------------


def test_a_changed_recipe_has_another_key_and_another_mirror_has_not():
    assert replace(RECIPE, packages=(*RECIPE.packages, "vim")).key != RECIPE.key
    assert replace(RECIPE, files=(*RECIPE.files, ("/etc/x", ""))).key != RECIPE.key
    assert replace(RECIPE, sources=(("http://other.example/", "bookworm", "main"),)).key == RECIPE.key


def test_the_sources_are_what_apt_uses_for_the_suite_its_own_first():
    listing = (
        "http://m.example/security/ bookworm-security main\n"
        "http://m.example/debian/ bookworm main\n"
        "http://m.example/debian/ bookworm contrib\n"
        "http://m.example/debian/ bookworm main\n"
        "http://m.example/other/ trixie main\n"
    )
    sources = sources_from_apt(listing)
    assert replace(RECIPE, sources=sources).apt_sources == (
        "deb http://m.example/debian/ bookworm main contrib\ndeb http://m.example/security/ bookworm-security main\n"
    )
    assert sources_from_apt("http://m.example/ubuntu/ noble main\n") == ()


# --- machines -------------------------------------------------------------------


def test_machines_have_the_same_address_on_eth0_and_their_own_on_eth1(tmp_path):
    server, node, last = machines(tmp_path, 3)
    assert [(each.name, each.role, each.readonly_usr) for each in (server, node, last)] == [
        ("vm1", "all", False),
        ("vm2", "node", False),
        ("vm3", "node", True),
    ]
    networks = [json.loads(seed.network_config(each))["ethernets"] for each in (server, node)]
    assert [each["eth0"] for each in networks] == [{"match": {"macaddress": "52:54:00:12:34:56"}, "dhcp4": True}] * 2
    assert [each["eth1"]["addresses"] for each in networks] == [["192.168.56.11/24"], ["192.168.56.12/24"]]
    assert json.loads(seed.meta_data(node)) == {"instance-id": "vm2", "local-hostname": "vm2"}


def test_the_emulators_command_line(tmp_path):
    *_, last = machines(tmp_path, 3)
    command = Emulator(Image(Path("/cache/image-1")), wire=4711).command(last)
    text = shlex.join(command)
    assert command[0] == "qemu-system-x86_64"
    assert "-accel tcg,thread=multi" in text
    assert "-kernel /cache/image-1/vmlinuz -initrd /cache/image-1/initrd" in text
    assert "podlane.usr=ro" in command[command.index("-append") + 1].split()
    assert f"file={tmp_path}/vm3/disk.qcow2,if=virtio" in text  # never the image itself
    assert "/cache/image-1/disk.raw" not in text
    assert "user,id=nat" in command
    assert "socket,id=private,mcast=230.86.0.1:4711,localaddr=127.0.0.1" in command


def test_a_process_id_that_is_another_process_now_is_not_the_machine(tmp_path):
    machine = machines(tmp_path, 2)[0]
    assert pid_of(machine) == 0
    machine.folder.mkdir()
    machine.pid_file.write_text("1\n")
    assert pid_of(machine) == 0


def test_what_the_guest_agent_says_of_a_command():
    done = completed({"exited": True, "exitcode": 3, "out-data": "aGkK", "err-data": "bm8K"})
    assert (done.returncode, done.stdout, done.stderr) == (3, "hi\n", "no\n")
    assert completed({"exited": True, "signal": 9}).returncode == -9


def test_requests_are_counted_and_so_is_the_longest_time_without_an_answer():
    log = "10 web-a\n11 web-b\n12 FAILED\n17 FAILED\n18 web-a\n30 FAILED\n31 web-a\n"
    assert str(counted(log)) == "4 requests answered by 2 pods, 3 failed (for 6 s at most)"
    assert str(counted("1 web-a\n")) == "1 requests answered by 1 pods, none failed"


# --- progress -------------------------------------------------------------------


class World:
    """Steps a, b and c; those in `broken` fail."""

    def __init__(self, memory: Path) -> None:
        self.memory, self.clock = memory, FakeClock()
        self.broken: set[str] = set()
        self.ran: list[str] = []

    def run(self, *only: str) -> list[progress.Outcome]:
        steps = [Step(name, f"do {name}", lambda n=name: self._act(n)) for name in "abc"]
        return Progress(self.memory, self.clock, lambda _: None).run(steps, only=only)

    def _act(self, name: str) -> str:
        self.ran.append(name)
        if name in self.broken:
            raise PodlaneError(f"do {name}: broken\nand more")
        return f"saw {name}"


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path / "steps.json")


def test_everything_is_seen_in_order(world):
    outcomes = world.run()
    assert world.ran == ["a", "b", "c"]
    assert progress.succeeded(outcomes)
    assert json.loads(progress.report(outcomes))["ok"] is True
    assert progress.table(outcomes).splitlines() == [
        "STEP  STATE    SECONDS  SEEN",
        "a     done         0.0  saw a",
        "b     done         0.0  saw b",
        "c     done         0.0  saw c",
        "everything was seen; 0.0 minutes",
    ]


def test_nothing_follows_a_failure_and_a_resumed_run_goes_on_there(world):
    world.broken = {"b"}
    outcomes = world.run()
    assert [outcome.state for outcome in outcomes] == ["done", "failed", "missing"]
    assert not progress.succeeded(outcomes)
    assert progress.table(outcomes).splitlines()[2:] == [
        "b     failed       0.0  do b: broken",
        "c     missing        -  do c",
        "NOT everything was seen; 0.0 minutes",
    ]
    world.broken, world.ran = set(), []
    outcomes = world.run()
    assert world.ran == ["b", "c"]
    assert [outcome.state for outcome in outcomes] == ["earlier", "done", "done"]
    assert progress.succeeded(outcomes)


def test_one_step_alone_is_done_again_and_does_not_stand_for_the_others(world):
    outcomes = world.run("b")
    assert world.ran == ["b"]
    assert not progress.succeeded(outcomes)
    world.run()
    world.run("b")
    assert world.ran == ["b", "a", "c", "b"]
    world.broken = {"b"}
    world.run("b")
    assert [outcome.state for outcome in world.run("a")] == ["done", "missing", "earlier"]
    with pytest.raises(UsageError, match="--only d: no such step; there are a, b, c"):
        world.run("d")
