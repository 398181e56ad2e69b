"""One suite for the container engine in memory and the real dockerd."""

from __future__ import annotations

import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from dockerd_process import IMAGE, Dockerd, dockerd, namespace

from scheduler.agent import containers as c
from scheduler.agent.fake import FakeRuntime
from scheduler.agent.runtime import (
    HOST_NETWORK,
    INFRA_IMAGE,
    NO_NETWORK,
    ContainerConfig,
    Mount,
    NameInUse,
    NoSuchContainer,
    NoSuchImage,
    NotRunning,
    Record,
    Runtime,
    RuntimeRefused,
    RuntimeUnavailable,
    Security,
)

pytestmark = pytest.mark.contract

SLEEP = ("sleep", "1000")


@pytest.fixture(scope="module")
def daemon() -> Iterator[Dockerd]:
    with namespace("plact") as netns, dockerd(netns) as started:
        yield started


@pytest.fixture(scope="module")
def engine(daemon: Dockerd) -> Iterator[Any]:
    from scheduler.agent.docker import DockerRuntime

    runtime = DockerRuntime(daemon.url)
    yield runtime
    runtime.close()


@pytest.fixture(params=["fake", "docker"])
def runtime(request: pytest.FixtureRequest) -> Iterator[Runtime]:
    runtime: Runtime
    if request.param == "fake":
        runtime = fake = FakeRuntime()
        fake.add_image(IMAGE)
        fake.unstartable["podlane-test/broken:1"] = "no such file"
    else:
        runtime = request.getfixturevalue("engine")
    runtime.ensure_infra_image()
    yield runtime
    for record in runtime.list():
        runtime.remove(record.id)


def config(container: str, *, infra: str = "", **changes: Any) -> ContainerConfig:
    labels = {c.POD_UID: "u1", c.CONTAINER_NAME: container, c.RESTART_COUNT: "0"}
    given = {
        "name": f"t-{container}",
        "image": IMAGE if infra else INFRA_IMAGE,
        "labels": labels,
        "network": f"container:{infra}" if infra else NO_NETWORK,
        "cmd": SLEEP if infra else (),
    }
    return ContainerConfig(**{**given, **changes})


def run(runtime: Runtime, cfg: ContainerConfig) -> str:
    identity = runtime.create(cfg)
    runtime.start(identity)
    return identity


def test_a_container_on_the_engines_own_network_and_one_that_joins_it(runtime: Runtime) -> None:
    runtime.ensure_infra_image()
    first = run(runtime, config("POD", network=HOST_NETWORK))
    second = run(runtime, config("web", infra="t-POD", security=Security(user="1000:2000", cap_drop=("ALL",))))
    states = {record.id: (record.state, record.joined) for record in runtime.list()}
    assert states == {first: ("running", ""), second: ("running", first)}


def test_whom_an_image_runs_as(runtime: Runtime) -> None:
    assert runtime.image_user(IMAGE) == ""
    with pytest.raises(NoSuchImage):
        runtime.image_user("podlane-test/none:1")


def infra(runtime: Runtime) -> str:
    return run(runtime, config(c.INFRA))


def record(runtime: Runtime, name: str) -> Record:
    return next(r for r in runtime.list() if name in {r.name, r.id})


def eventually(condition: Callable[[], bool], seconds: float = 15.0) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "did not become true"
        time.sleep(0.02)


def test_tells_what_it_is(runtime: Runtime) -> None:
    info = runtime.info()
    assert info.name
    assert info.version
    assert info.cpus > 0
    assert info.memory > 0


def test_an_infra_container_has_a_namespace_of_its_own(runtime: Runtime) -> None:
    identity = infra(runtime)
    seen = record(runtime, "t-POD")
    assert (seen.id, seen.running, seen.joined, seen.ip) == (identity, True, "", "")
    assert c.pod_uid(seen) == "u1"


def test_the_process_of_a_container_is_told_while_it_runs(runtime: Runtime) -> None:
    identity = infra(runtime)
    run(runtime, config("web", infra="t-POD"))
    assert runtime.process("t-POD") == runtime.process(identity)
    assert runtime.process("t-POD")[0] == identity
    assert runtime.process("t-POD")[1] != runtime.process("t-web")[1]
    runtime.create(config("side", infra="t-POD"))
    runtime.stop("t-web", 0)
    for idle in ("t-side", "t-web"):
        with pytest.raises(NotRunning):
            runtime.process(idle)
    with pytest.raises(NoSuchContainer):
        runtime.process("t-gone")


def test_a_container_joins_the_infra_container_by_name_and_reports_its_id(runtime: Runtime) -> None:
    holder = infra(runtime)
    run(runtime, config("web", infra="t-POD"))
    seen = record(runtime, "t-web")
    assert (seen.joined, seen.ip, seen.image) == (holder, "", IMAGE)
    assert seen.image_id == runtime.image(IMAGE)
    assert seen.started_at is not None
    assert seen.finished_at is None


def test_a_created_container_is_created_until_started(runtime: Runtime) -> None:
    infra(runtime)
    runtime.create(config("web", infra="t-POD"))
    assert record(runtime, "t-web").state == "created"
    runtime.start("t-web")
    assert record(runtime, "t-web").state == "running"


def test_names_are_unique(runtime: Runtime) -> None:
    infra(runtime)
    with pytest.raises(NameInUse):
        runtime.create(config(c.INFRA))


def test_joining_a_container_that_is_gone_is_refused_at_the_start(runtime: Runtime) -> None:
    runtime.create(config("web", infra="t-gone"))
    with pytest.raises(RuntimeRefused):
        runtime.start("t-web")
    assert not record(runtime, "t-web").running


def test_an_image_that_is_not_there_is_refused(runtime: Runtime) -> None:
    infra(runtime)
    assert runtime.image("podlane-test/none:1") is None
    with pytest.raises(NoSuchImage):
        runtime.create(config("web", infra="t-POD", image="podlane-test/none:1"))


def test_pulling_what_no_registry_has_is_refused(runtime: Runtime) -> None:
    with pytest.raises(RuntimeRefused):
        runtime.pull("127.0.0.1:1/podlane-test/none:1")


def test_images_are_listed_with_their_use_and_removed_only_without(runtime: Runtime, request: Any) -> None:
    if isinstance(runtime, FakeRuntime):
        spare = "spare:1"
        runtime.add_image(spare)
    else:
        spare = "podlane-test/spare:1"
        request.getfixturevalue("daemon").load_busybox(spare, "ls")  # another image, not another name of one
    identity = runtime.image(spare)
    assert identity is not None
    infra(runtime)
    images = {image.id: image for image in runtime.list_images()}
    assert images[identity].names == (spare,)
    assert images[identity].size > 0
    assert not images[identity].in_use
    held = runtime.image(INFRA_IMAGE)
    assert held is not None
    assert images[held].in_use
    with pytest.raises(RuntimeRefused):
        runtime.remove_image(held)
    assert runtime.image(INFRA_IMAGE) == held
    runtime.remove_image(identity)
    runtime.remove_image(identity)
    assert runtime.image(spare) is None
    assert identity not in {image.id for image in runtime.list_images()}


def test_sigterm_and_sigkill_end_a_container_with_their_codes(runtime: Runtime) -> None:
    infra(runtime)
    trap = ("sh", "-c", "trap 'exit 143' TERM; while true; do sleep 0.05; done")
    run(runtime, config("polite", infra="t-POD", cmd=trap))
    run(runtime, config("stubborn", infra="t-POD"))
    runtime.signal("t-polite", "SIGTERM")
    runtime.signal("t-stubborn", "SIGKILL")
    eventually(lambda: not any(record(runtime, n).running for n in ("t-polite", "t-stubborn")))
    polite, stubborn = record(runtime, "t-polite"), record(runtime, "t-stubborn")
    assert (polite.exit_code, stubborn.exit_code) == (143, 137)
    assert polite.finished_at is not None
    assert polite.started_at is not None
    assert polite.started_at <= polite.finished_at
    with pytest.raises(NotRunning):
        runtime.signal("t-polite", "SIGTERM")
    with pytest.raises(NoSuchContainer):
        runtime.signal("t-gone", "SIGTERM")


def test_stop_returns_when_the_container_has_ended(runtime: Runtime) -> None:
    infra(runtime)
    run(runtime, config("web", infra="t-POD"))
    runtime.stop("t-web", 0)
    assert record(runtime, "t-web").state == "exited"
    with pytest.raises(NoSuchContainer):
        runtime.stop("t-gone", 0)


def test_remove_kills_what_runs_and_is_content_with_what_is_gone(runtime: Runtime) -> None:
    infra(runtime)
    runtime.remove("t-POD")
    assert runtime.list() == ()
    runtime.remove("t-POD")


def test_a_container_cannot_start_in_a_dead_network(runtime: Runtime) -> None:
    infra(runtime)
    runtime.create(config("web", infra="t-POD"))
    runtime.signal("t-POD", "SIGKILL")
    eventually(lambda: not record(runtime, "t-POD").running)
    with pytest.raises(RuntimeRefused):
        runtime.start("t-web")


def test_when_an_event_tells_of_an_end_the_list_shows_it(runtime: Runtime) -> None:
    """dockerd reports a death a moment before its list knows; a sync at that moment would miss it."""
    infra(runtime)
    stream = runtime.events()
    seen: list[tuple[str, str, str, bool]] = []

    def follow() -> None:
        for e in stream:
            seen.append((e.kind, e.action, e.labels.get(c.POD_UID, ""), record(runtime, "t-POD").running))

    thread = threading.Thread(target=follow)
    thread.start()
    runtime.signal("t-POD", "SIGKILL")
    eventually(lambda: bool(seen))
    stream.close()
    thread.join(10)
    assert not thread.is_alive()
    assert ("container", "die", "u1", False) in seen


def test_exec_returns_code_and_output(runtime: Runtime) -> None:
    infra(runtime)
    run(runtime, config("web", infra="t-POD"))
    result = runtime.exec("t-web", ("true",), 10)
    assert (result.exit_code, result.output) == (0, b"")
    with pytest.raises(NoSuchContainer):
        runtime.exec("t-gone", ("true",), 10)
    runtime.stop("t-web", 0)
    with pytest.raises(NotRunning):
        runtime.exec("t-web", ("true",), 10)


def test_an_exec_session_echoes_and_ends_with_its_code(runtime: Runtime) -> None:
    infra(runtime)
    run(runtime, config("web", infra="t-POD"))
    script = 'while read -r line; do case "$line" in exit*) $line;; *) echo "$line";; esac; done'
    session = runtime.open_exec("t-web", ("sh", "-c", script), tty=False, stdin=True)
    output = session.output()
    session.send(b"hello\n")
    assert next(output) == ("stdout", b"hello\n")
    session.send(b"exit 7\n")
    assert list(output) == []
    assert session.exit_code() == 7
    session.close()


def test_an_exec_session_ends_with_its_input(runtime: Runtime) -> None:
    infra(runtime)
    run(runtime, config("web", infra="t-POD"))
    session = runtime.open_exec("t-web", ("cat",), tty=False, stdin=True)
    session.send(b"abc")
    session.end_input()
    assert b"".join(data for _, data in session.output()) == b"abc"
    assert session.exit_code() == 0
    session.close()


def test_closing_an_exec_session_ends_its_reader(runtime: Runtime) -> None:
    infra(runtime)
    run(runtime, config("web", infra="t-POD"))
    session = runtime.open_exec("t-web", ("cat",), tty=False, stdin=True)
    reader = threading.Thread(target=lambda: list(session.output()))
    reader.start()
    session.close()
    reader.join(10)
    assert not reader.is_alive()


def test_an_engine_that_is_away_is_unavailable(runtime: Runtime, tmp_path: Path) -> None:
    if isinstance(runtime, FakeRuntime):
        away: Runtime = FakeRuntime()
        away.down = True  # type: ignore[attr-defined]
    else:
        from scheduler.agent.docker import DockerRuntime

        away = DockerRuntime(f"unix://{tmp_path}/none.sock")
    for call in (away.list, away.info, away.events, away.ensure_infra_image):
        with pytest.raises(RuntimeUnavailable):
            call()


def test_an_engine_that_hangs_is_unavailable_by_a_deadline(runtime: Runtime, request: Any) -> None:
    """A stopped dockerd accepts connections and answers none."""
    infra(runtime)
    if isinstance(runtime, FakeRuntime):
        hung: Runtime = runtime
        runtime.down = True
    else:
        from scheduler.agent.docker import DockerRuntime

        daemon: Dockerd = request.getfixturevalue("daemon")
        hung = DockerRuntime(daemon.url, quick=0.2, work=0.2)
        hung.info()
        daemon.signal(signal.SIGSTOP)
    calls: list[Callable[[], Any]] = [
        *(hung.list, hung.list_images, hung.events, lambda: hung.logs("t-POD"), lambda: hung.start("t-POD")),
        *(lambda: hung.exec("t-POD", ("true",), 1), lambda: hung.open_exec("t-POD", ("sh",), tty=True, stdin=True)),
    ]
    try:
        for call in calls:
            with pytest.raises(RuntimeUnavailable):
                call()
    finally:
        if isinstance(runtime, FakeRuntime):
            runtime.down = False
        else:
            daemon.signal(signal.SIGCONT)
    assert [r.name for r in hung.list()] == ["t-POD"]


# --- what only real containers do ----------------------------------------------------------------


@pytest.fixture
def real(engine: Runtime) -> Iterator[Runtime]:
    engine.ensure_infra_image()
    yield engine
    for found in engine.list():
        engine.remove(found.id)


def test_docker_command_that_does_not_exist(real: Runtime) -> None:
    infra(real)
    real.create(config("web", infra="t-POD", cmd=("nonsense",)))
    assert record(real, "t-web").state == "created"
    with pytest.raises(RuntimeRefused, match="nonsense"):
        real.start("t-web")
    seen = record(real, "t-web")
    assert seen.state == "exited"
    assert seen.exit_code == 127
    assert "nonsense" in seen.error


def test_docker_logs(real: Runtime) -> None:
    infra(real)
    run(
        real,
        config("web", infra="t-POD", cmd=("sh", "-c", "echo one; echo two >&2; sleep 0.2; echo three; sleep 1000")),
    )
    eventually(lambda: b"".join(real.logs("t-web")).count(b"\n") == 3)
    assert b"".join(real.logs("t-web", tail=1)) == b"three\n"
    assert b"".join(real.logs("t-web", since=time.time() + 60)) == b""
    stamped = b"".join(real.logs("t-web", tail=1, timestamps=True))
    assert stamped.startswith(b"20")
    assert stamped.endswith(b"Z three\n")
    following = real.logs("t-web", follow=True, tail=1)
    pieces: list[bytes] = []
    reader = threading.Thread(target=lambda: pieces.extend(following))
    reader.start()
    eventually(lambda: pieces == [b"three\n"])
    following.close()
    reader.join(10)
    assert not reader.is_alive()
    with pytest.raises(NoSuchContainer):
        b"".join(real.logs("t-gone"))


def test_docker_logs_of_a_terminal_come_in_pieces_and_not_in_bytes(real: Runtime) -> None:
    infra(real)
    run(real, config("web", infra="t-POD", tty=True, cmd=("sh", "-c", "echo one; echo two; sleep 1000")))
    eventually(lambda: b"".join(real.logs("t-web")).count(b"\n") == 2)
    pieces = list(real.logs("t-web"))
    assert b"".join(pieces) == b"one\r\ntwo\r\n"
    assert len(pieces) <= 2
    following = real.logs("t-web", follow=True)
    seen: list[bytes] = []
    reader = threading.Thread(target=lambda: seen.extend(following))
    reader.start()
    eventually(lambda: b"".join(seen).count(b"\n") == 2)
    following.close()
    reader.join(10)
    assert not reader.is_alive()


def test_docker_limits_become_control_groups(real: Runtime) -> None:
    from scheduler.agent.runtime import Limits

    infra(real)
    limits = Limits(cpu_shares=102, cpu_quota=50_000, memory=64 << 20)
    run(real, config("web", infra="t-POD", limits=limits, env=("GREETING=hello there",), working_dir="/bin"))
    told = real._api.ask("look", lambda api: api.inspect_container("t-web"))["HostConfig"]  # type: ignore[attr-defined]
    assert (told["CpuShares"], told["CpuQuota"], told["Memory"]) == (102, 50_000, 64 << 20)
    assert real.exec("t-web", ("sh", "-c", 'echo "$GREETING"; pwd'), 10).output == b"hello there\n/bin\n"


def test_docker_an_oom_score_below_what_this_machine_may_give_is_no_obstacle(real: Runtime) -> None:
    from scheduler.agent.docker import lowest_oom_score_adj
    from scheduler.agent.runtime import Limits

    run(real, config(c.INFRA, limits=Limits(oom_score_adj=-998)))
    _, pid = real.process("t-POD")
    assert int(Path(f"/proc/{pid}/oom_score_adj").read_text()) == max(-998, lowest_oom_score_adj())


def test_docker_pod_shares_one_network_and_its_infra_ignores_sigterm(real: Runtime) -> None:
    run(real, config(c.INFRA, hostname="web-1"))
    run(real, config("a", infra="t-POD"))
    run(real, config("b", infra="t-POD"))
    names = {real.exec(n, ("cat", "/proc/sys/kernel/hostname"), 10).output for n in ("t-a", "t-b")}
    assert names == {b"web-1\n"}
    real.signal("t-POD", "SIGTERM")
    time.sleep(0.3)
    assert record(real, "t-POD").running


def test_docker_infra_container_has_only_its_loopback(real: Runtime) -> None:
    _, pid = real.process(infra(real))
    argv = ["nsenter", f"--net=/proc/{pid}/ns/net", "ip", "-o", "link"]
    links = subprocess.run(argv, check=True, capture_output=True, text=True, timeout=10).stdout.splitlines()
    assert len(links) == 1
    assert " lo: " in links[0]


def test_docker_mounts_files_also_into_an_image_without_the_folder(real: Runtime, tmp_path: Path) -> None:
    infra(real)
    hosts, resolv = tmp_path / "hosts", tmp_path / "resolv.conf"
    hosts.write_text("10.99.7.2\tweb-1\n")
    resolv.write_text("nameserver 192.0.2.1\n")
    mounts = (Mount(str(hosts), "/etc/hosts"), Mount(str(resolv), "/etc/resolv.conf", read_only=True))
    run(real, config("web", infra="t-POD", mounts=mounts))
    assert real.exec("t-web", ("cat", "/etc/hosts", "/etc/resolv.conf"), 10).output == (
        b"10.99.7.2\tweb-1\nnameserver 192.0.2.1\n"
    )
    assert real.exec("t-web", ("sh", "-c", "echo more >> /etc/hosts"), 10).exit_code == 0
    assert hosts.read_text().endswith("more\n")
    assert real.exec("t-web", ("sh", "-c", "echo more >> /etc/resolv.conf"), 10).exit_code != 0
    gone = (Mount(str(tmp_path / "gone"), "/etc/hosts"),)
    with pytest.raises(RuntimeRefused, match="gone"):
        real.create(config("side", infra="t-POD", mounts=gone))
    assert not (tmp_path / "gone").exists()


def test_docker_exec_with_a_terminal(real: Runtime) -> None:
    infra(real)
    run(real, config("web", infra="t-POD"))
    session = real.open_exec("t-web", ("sh", "-c", "read -r go; stty size; exit 3"), tty=True, stdin=True)
    session.resize(33, 101)
    session.send(b"\n")
    assert b"33 101" in b"".join(data for _, data in session.output())
    assert session.exit_code() == 3
    session.close()


def test_docker_exec_separates_stderr_and_keeps_its_deadline(real: Runtime) -> None:
    infra(real)
    run(real, config("web", infra="t-POD"))
    session = real.open_exec("t-web", ("sh", "-c", "echo out; echo err >&2"), tty=False, stdin=False)
    assert sorted(session.output()) == [("stderr", b"err\n"), ("stdout", b"out\n")]
    session.close()
    with pytest.raises(TimeoutError):
        real.exec("t-web", ("sleep", "5"), 0.3)
