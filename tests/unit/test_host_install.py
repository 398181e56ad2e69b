"""Installing and upgrading a host: the plan, the same again, and what is left when anything fails."""

from __future__ import annotations

import dataclasses
import re
import tomllib
from pathlib import Path

import pytest
from msgspec.structs import replace

from podlane.host import conflict, install, layout
from podlane.host.apply import Undone
from podlane.host.fake import FakeSystem
from podlane.host.install import Actual, look
from podlane.host.layout import CURRENT, ORDER, RECORD, unit_name
from podlane.host.machine import Machine
from podlane.host.options import InstallOptions
from podlane.host.steps import Command, File, Folder, Link, Plan, Remove, Start
from podlane.host.system import Found
from tests.unit.host_world import ALL, BUNDLE, NEXT, NODE, applier, installed, machine, planned, state, system

pytestmark = pytest.mark.unit

GOLDEN = Path(__file__).with_name("host_golden")
EXTERNAL = InstallOptions(
    role="node", etcd=("https://192.0.2.1:2379",), ca="/root/ca.pem", cert_dir="/root/host1", firewalld=True
)
FURTHER = InstallOptions(
    role="server",
    join="https://192.0.2.1:10261",
    etcd_join=("server1=https://192.0.2.1:2380", "host1=https://192.0.2.7:2380"),
)


def commands(plan: Plan) -> str:
    """A plan without the contents of its files."""
    return re.sub(r" /dev/stdin (\S+) <<'END'\n.*?\nEND(?=\n|$)", r" \1", str(plan), flags=re.DOTALL) + "\n"


@pytest.mark.parametrize(
    ("name", "options"), [("all", ALL), ("node", NODE), ("external", EXTERNAL), ("further-server", FURTHER)]
)
def test_what_an_installation_does(name: str, options: InstallOptions) -> None:
    assert commands(planned(system(options), options)) == (GOLDEN / f"install-{name}.txt").read_text()


def test_the_token_is_shown_nowhere() -> None:
    plan = planned(system(NODE), NODE)
    assert "t0ken" not in str(plan)
    assert [step.stdin for step in plan.steps if isinstance(step, Command) and step.stdin] == ["t0ken"]


@pytest.mark.parametrize("options", [ALL, NODE, EXTERNAL, FURTHER])
def test_only_etc_opt_run_and_var_are_written(options: InstallOptions) -> None:
    for step in planned(system(options), options, NEXT, machine(network_manager=True)).steps:
        match step:
            case Folder() | File() | Link() | Remove():
                written = [step.path]
            case Command():
                written = [*step.makes, *(w for w in step.argv[1:] if w.startswith("/usr") and step.argv[0] != "cp")]
            case Start():
                written = []
        assert all(re.match(r"/(etc|opt|run|var)/", path) for path in written), step


@pytest.mark.parametrize("options", [ALL, NODE, EXTERNAL])
def test_the_same_again_changes_nothing(options: InstallOptions) -> None:
    fake = installed(options)
    assert fake.running >= {unit_name(each) for each in options.daemons}
    assert planned(fake, options).stages == ()


def test_another_option_restarts_only_whom_it_concerns() -> None:
    plan = planned(installed(), replace(ALL, ip_masq=False))
    assert commands(plan) == (
        "# settings\ninstall -m 0644 /etc/podlane/netd.env\n\n"
        "# netd\nsystemctl restart podlane-netd.service\n\n"
        "# record\ninstall -m 0644 /etc/podlane/install.json\n"
    )


def test_a_daemon_that_was_stopped_is_started() -> None:
    fake = installed()
    fake.running.discard(unit_name("proxyd"))
    assert str(planned(fake)) == "# proxyd\nsystemctl start podlane-proxyd.service"


@pytest.mark.parametrize("options", [ALL, NODE])
def test_a_failure_anywhere_leaves_nothing(options: InstallOptions) -> None:
    whole = installed(options).changes
    for n in range(1, whole + 1):
        fake = system(options)
        fake.fail_at = n
        plan = planned(fake, options)
        if not _fails(fake, plan):
            continue  # a step that may fail
        assert state(fake) == state(joined(fake, options)), f"change {n}: {fake.log[n - 1]}"


def joined(fake: FakeSystem, options: InstallOptions) -> FakeSystem:
    """A host on which nothing is but what a join brought, if that was before the failure."""
    expected = system(options)
    kept = (f"{layout.PKI}/", layout.CLUSTER_ENVIRONMENT)
    if options.join and layout.CLUSTER_ENVIRONMENT in fake.files:
        whole = installed(options).files
        above = (layout.ETC, layout.PKI)
        expected.files |= {path: found for path, found in whole.items() if path.startswith(kept) or path in above}
    return expected


def test_a_host_that_has_joined_goes_on_without_a_second_use_of_its_token() -> None:
    fake = system(NODE)
    fake.broken.add(unit_name("netd"))
    with pytest.raises(Undone, match=r"/etc/podlane/pki, /etc/podlane/cluster.env stay: this host has joined"):
        applier(fake).apply(planned(fake, NODE))
    fake.broken.clear()
    fake.log.clear()
    applier(fake).apply(planned(fake, NODE))
    assert not [line for line in fake.log if " host join " in line]
    assert planned(fake, NODE).stages == ()


@pytest.mark.parametrize(
    ("options", "host", "problem"),
    [
        (ALL, machine(), ""),
        (replace(ALL, ip_masq=False), machine(), ""),
        (InstallOptions(role="server"), machine(), "; to be without netd, proxyd, agent, uninstall it first"),
        (ALL, machine(name="other"), ", its certificates say so; to make it other at 192.0.2.7, uninstall it first"),
        (replace(FURTHER, role="all", admits=True), machine(), "; to become a member of another cluster, uninstall"),
    ],
)
def test_what_an_installed_host_can_become(options: InstallOptions, host: Machine, problem: str) -> None:
    said = conflict.of_installation(look(installed(), ()), options, host)
    assert said.startswith(f"this host is all host1 at 192.0.2.7{problem}" if problem else "")
    assert bool(said) == bool(problem)


def test_a_host_that_has_joined_makes_no_cluster() -> None:
    said = conflict.of_installation(Actual(keys=frozenset({"join.json"})), ALL, machine())
    assert said == "this host has joined a cluster (/etc/podlane/pki/join.json); to make one, uninstall --purge first"


def test_a_member_is_among_the_members() -> None:
    said = conflict.of_installation(Actual(), FURTHER, machine(name="host2"))
    assert said == "--etcd-join: expected host2 among the members, as `podlane etcd add-member` prints them"
    assert conflict.of_installation(Actual(), FURTHER, machine()) == ""


def test_a_server_that_is_to_run_pods_as_well_is_enrolled_for_it() -> None:
    fake = installed(InstallOptions(role="server"))
    text = commands(planned(fake, ALL))
    assert "podlane host keys --role all" in text
    assert "podlane host enrol --role node" in text
    assert "start podlane-netd.service" in text
    assert "start podlane-etcd.service" not in text


def _fails(fake: FakeSystem, plan: Plan) -> bool:
    """False: it was a step that may fail. What is said of the rest is checked here."""
    try:
        applier(fake).apply(plan)
    except Undone as error:
        said = str(error)
    else:
        return False
    assert "everything that this run did is undone" in said  # and not: "undone, but for:"
    return True


def test_a_daemon_that_does_not_start_is_told_and_everything_is_undone() -> None:
    fake = system()
    fake.broken.add(unit_name("agent"))
    with pytest.raises(Undone, match=r"^agent: start podlane-agent\.service: it ends \(exit-code\)"):
        applier(fake).apply(planned(fake))
    assert state(fake) == state(system())


def test_an_upgrade_is_unpacked_beside_and_restarts_one_after_the_other() -> None:
    fake = installed()
    begin = len(fake.log)
    applier(fake).apply(planned(fake, bundle=NEXT))
    done = fake.log[begin:]
    restarts = [line for line in done if line.startswith("systemctl restart")]
    assert restarts == [f"systemctl restart {unit_name(each)}" for each in ORDER]
    assert done.index(f"link {CURRENT} versions/{NEXT.name}") < done.index(restarts[0])
    assert fake.names(layout.VERSIONS) == (BUNDLE.name, NEXT.name)


def test_a_failed_upgrade_goes_back_wherever_it_fails() -> None:
    before = installed()
    fake = installed()
    applier(fake).apply(planned(fake, bundle=NEXT))
    for n in range(before.changes + 1, fake.changes + 1):
        fake = installed()
        fake.fail_at = n
        if _fails(fake, planned(fake, bundle=NEXT)):
            assert state(fake) == state(before), f"change {n}: {fake.log[n - 1]}"


def test_the_old_daemons_run_again_when_a_new_one_does_not() -> None:
    fake = installed()
    fake.broken.add(unit_name("netd"))
    fake.log.clear()
    with pytest.raises(Undone, match=r"^netd: start"):
        applier(fake).apply(planned(fake, bundle=NEXT))
    back = fake.log[fake.log.index(f"link {CURRENT} versions/{BUNDLE.name}") :]
    again = [unit_name(each) for each in ("etcd", "join", "scheduler", "netd")]
    assert [line for line in back if line.startswith("systemctl restart")] == [f"systemctl restart {u}" for u in again]


def test_an_upgrade_forgets_no_member_of_etcd() -> None:
    fake = installed()
    grown = b"PODLANE_ETCD_ENDPOINTS=https://192.0.2.7:2379,https://192.0.2.8:2379\n"
    fake.write(layout.CLUSTER_ENVIRONMENT, grown, 0o644)
    applier(fake).apply(planned(fake, bundle=NEXT))
    assert fake.files[layout.CLUSTER_ENVIRONMENT].content == grown


def test_an_upgrade_of_a_server_that_made_no_snapshots_lets_it_make_them() -> None:
    fake = installed()
    timer = f"{layout.UNITS}/{layout.SNAPSHOT_TIMER}"
    for path in (timer, f"{layout.UNITS}/podlane-snapshot.service", "/etc/podlane/snapshot.env", layout.BACKUPS):
        fake.remove(path)
    fake.running.discard(layout.SNAPSHOT_TIMER)
    fake.enabled.discard(layout.SNAPSHOT_TIMER)
    applier(fake).apply(planned(fake, bundle=NEXT))
    assert fake.look(timer) is not None
    assert fake.look(layout.BACKUPS) == Found("folder", mode=0o700)
    assert layout.SNAPSHOT_TIMER in fake.running & fake.enabled


@pytest.mark.parametrize("options", [NODE, EXTERNAL])
def test_who_has_no_etcd_makes_no_snapshots(options: InstallOptions) -> None:
    assert not [path for path in installed(options).files if "snapshot" in path or path == layout.BACKUPS]


def test_two_versions_are_kept() -> None:
    fake = installed()
    applier(fake).apply(planned(fake, bundle=NEXT))
    third = type(NEXT)("/var/tmp/z", "1.2.0", "aaaaaaaaaaaa", "/usr/bin/python3")
    applier(fake).apply(planned(fake, bundle=third))
    assert fake.names(layout.VERSIONS) == (NEXT.name, third.name)


def test_packages_that_are_not_compiled_for_the_hosts_python_are_compiled_there() -> None:
    bundle = dataclasses.replace(BUNDLE, abi="3.13", compiled=False)
    folder = layout.version_folder(BUNDLE.name)
    packages = f"{folder}/lib/python3.13/site-packages"
    text = commands(planned(system(), bundle=bundle))
    assert f"cp -a /var/tmp/podlane.x/site/. {packages}/\n" in text
    assert f"{folder}/bin/python -m compileall -q --invalidation-mode unchecked-hash {packages} || true\n" in text


def test_the_programs_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    programs = {name: f"{module}:main" for name, module in install.PROGRAMS.items()}
    assert programs == project["project"]["scripts"]


def test_an_interrupted_unpacking_is_begun_anew() -> None:
    fake = system()
    fake.make_folder(layout.version_folder(BUNDLE.name), 0o755)
    fake.write(f"{layout.version_folder(BUNDLE.name)}/half", b"", 0o644)
    applier(fake).apply(planned(fake))
    assert fake.look(f"{layout.version_folder(BUNDLE.name)}/half") is None


def test_a_record_of_another_program_is_no_record() -> None:
    fake = installed()
    fake.write(RECORD, b"{}", 0o644)
    assert [stage.name for stage in planned(fake).stages] == ["settings", "cluster", "record"]


def test_what_is_unpacked_is_labelled_before_systemd_reads_or_starts_it() -> None:
    host = machine(restorecon="/sbin/restorecon", selinux="enforcing")
    lines = commands(planned(system(), host=host)).splitlines()
    settings, label, record = [line for line in lines if "restorecon" in line]
    assert lines.index(settings) < lines.index("systemd-sysusers /etc/sysusers.d/podlane.conf")
    assert {"/etc/sysusers.d/podlane.conf", "/etc/podlane/etcd.env"} <= set(settings.split())
    assert record == f"/sbin/restorecon {RECORD}"
    assert label.startswith(f"/sbin/restorecon -R /opt/podlane /etc/podlane {layout.UNITS}/podlane-etcd.service ")
    assert lines.index(f"ln -sfn versions/{BUNDLE.name} {CURRENT}") < lines.index(label)
    assert lines.index(label) < lines.index("systemctl daemon-reload")
    assert "chcon" not in "".join(lines)
    assert planned(installed(), host=host).stages == ()


def test_programs_below_a_link_are_labelled_as_programs() -> None:
    host = machine(restorecon="/sbin/restorecon", selinux="permissive", opt_is_link=True)
    bundle = dataclasses.replace(BUNDLE, with_python=True)
    folder = layout.version_folder(bundle.name)
    lines = commands(planned(system(), bundle=bundle, host=host)).splitlines()
    label = lines.index(f"chcon -R -t bin_t /opt/podlane/bin {folder}/bin {folder}/python/bin")
    assert "restorecon" in lines[label - 1]


def test_nothing_is_labelled_where_selinux_is_off() -> None:
    text = commands(planned(system(), host=machine(restorecon="/sbin/restorecon", opt_is_link=True)))
    assert not re.search("restorecon|chcon", text)
