"""The Vagrantfile is valid, whatever box is chosen, and its machines find together; no machine is started."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from podlane.host.layout import RECORD
from podlane.lab import images

pytestmark = pytest.mark.unit

FOLDER = Path(__file__).resolve().parents[2] / "vagrant"
SCRIPTS = sorted((FOLDER / "scripts").glob("*.sh"))

# What cluster.rb is in when Vagrant loads it; each machine answers commands with what a test says.
FRAME = """
module Vagrant
  module Errors
    class VagrantError < StandardError
      def message = error_message
    end
  end
end
require "./cluster"
State = Struct.new(:id)
class Ui
  def initialize(name) = @name = name
  def info(text) = puts("#{@name}| #{text}")
end
class Machine
  attr_reader :name, :state
  def initialize(name, there, answers)
    @name, @state, @answers = name.to_sym, State.new(there), answers
  end
  def ui = Ui.new(@name)
  def provider_name = :fake
  def communicate = self
  def ready? = true
  def sudo(command, error_check:)
    puts "#{@name}# #{command.gsub('/var/tmp/podlane/scripts/', '')}"
    code, text = (@answers.find { |part, _| command.include?(part) } || [nil, [0, ""]])[1]
    text = text.call if text.respond_to?(:call)
    yield :stdout, text unless text.empty?
    code.respond_to?(:call) ? code.call : code
  end
end
class Env
  def initialize(machines) = @machines = machines
  def machine(name, _provider, _refresh) = @machines.fetch(name)
end
def try
  yield
rescue Vagrant::Errors::VagrantError => e
  puts "error: #{e.message}"
end
THREE = { "node1" => "192.168.56.11", "node2" => "192.168.56.12", "node3" => "192.168.56.13" }
NEW = { "test -e /etc/podlane/install.json" => [1, ""] }
SHOWS = { "demo.sh address" => [0, "10.96.0.7\\n"], "demo.sh 3" => [0, "$ podlane get pods"] }
"""


def ruby(script: str) -> str:
    run = subprocess.run(
        ["ruby", "-"], input=FRAME + script, cwd=FOLDER, capture_output=True, text=True, timeout=60, check=False
    )
    assert run.returncode == 0, run.stderr
    return run.stdout


def settings(**changed: str) -> str:
    given = {"MACHINES": "3", "BOX": "debian", "DRIVER": "kvm", "MEMORY": "1536", "CPUS": "2", "NETWORK": "192.168.56"}
    empty = dict.fromkeys(("BOX_NAME", "BUNDLE", "BUSYBOX", "DOCKER_REPO"), "")
    pairs = ", ".join(f'"{name}" => "{value}"' for name, value in (given | empty | changed).items())
    return f'PodlaneVagrant::Plan.new({{{pairs}}}, {{"debian" => "d/12", "atomic" => "d/12"}}, root: "/nowhere")'


@pytest.mark.parametrize(("box", "driver"), [("debian", "kvm"), ("atomic", "qemu"), ("centos", "kvm")])
def test_vagrant_takes_the_file(box: str, driver: str, tmp_path: Path) -> None:
    environ = {"VAGRANT_HOME": str(tmp_path / "home"), "VAGRANT_DOTFILE_PATH": str(tmp_path / "dot")}
    environ |= {"VAGRANT_CHECKPOINT_DISABLE": "1", "PODLANE_VAGRANT_BOX": box, "PODLANE_VAGRANT_DRIVER": driver}
    environ |= {"PODLANE_VAGRANT_MACHINES": "2"}
    run = subprocess.run(
        ["vagrant", "validate", "--ignore-provider"],
        cwd=FOLDER,
        env={**os.environ, **environ},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Vagrantfile validated successfully." in run.stdout
    assert "node2" in run.stdout
    assert "node3" not in run.stdout


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("BOX", "windows", 'expected one of debian, atomic, got "windows"'),
        ("DRIVER", "xen", 'expected one of kvm, qemu, got "xen"'),
        ("MACHINES", "0", 'expected a number from 1 to 100, got "0"'),
        ("MEMORY", "1G", 'expected a number from 1024 to 1048576, got "1G"'),
        ("NETWORK", "10.0.0.0/24", 'expected three numbers such as 192.168.56, got "10.0.0.0/24"'),
        ("NETWORK", "10.0.256", 'expected three numbers such as 192.168.56, got "10.0.256"'),
    ],
)
def test_a_setting_that_makes_no_sense_is_named(name: str, value: str, says: str) -> None:
    assert ruby(f"try {{ {settings(**{name: value})} }}") == f"error: podlane: PODLANE_VAGRANT_{name}: {says}\n"


def test_what_the_settings_make(tmp_path: Path) -> None:
    for age, name in ((200, "podlane-0.1.0.run"), (100, "podlane-0.2.0.run")):
        bundle = tmp_path / "dist" / name
        bundle.parent.mkdir(exist_ok=True)
        bundle.touch()
        os.utime(bundle, (1000 - age, 1000 - age))
    said = ruby(
        f"""
        plan = {settings(BOX="atomic", BOX_NAME="mine/coreos")}
        try {{ plan.check_files }}
        p plan.box, plan.machines, plan.steps("node1"), plan.steps("node2")
        plan = {settings(MACHINES="1", BUSYBOX="/nowhere/busybox").replace("/nowhere", str(tmp_path), 2)}
        puts plan.files.map {{ |from, to| "#{{from.sub("{tmp_path}", "")}} => #{{to}}" }}
        try {{ plan.check_files }}
        """
    )
    begin = "rm -f /var/tmp/podlane/failed; sh /var/tmp/podlane/scripts"
    end = "|| { touch /var/tmp/podlane/failed; exit 1; }"
    prepare = f'"prepare"=>"{begin}/prepare.sh readonly \'\' {end}"'
    server = f'"server"=>"{begin}/server.sh node1 192.168.56.11 {end}"'
    assert said.replace(" => ", "=>").splitlines() == [
        "error: podlane: no dist/podlane-*.run: make it with ./appliance bundle, "
        "or name one with PODLANE_VAGRANT_BUNDLE",
        '"mine/coreos"',
        '{"node1"=>"192.168.56.11", "node2"=>"192.168.56.12", "node3"=>"192.168.56.13"}',
        f"{{{prepare}, {server}}}",
        f"{{{prepare}}}",
        "/dist/podlane-0.2.0.run=>/var/tmp/podlane/podlane.run",
        f"{FOLDER}/scripts=>/var/tmp/podlane/scripts",
        f'error: podlane: PODLANE_VAGRANT_BUSYBOX: expected a file, got "{tmp_path}/busybox"',
    ]


def test_a_node_waits_for_the_first_and_the_last_one_shows_the_demonstration() -> None:
    said = ruby(
        """
        tries = 0
        serves = { "token.sh" => [-> { tries < 3 ? 3 : 0 }, -> { (tries += 1) < 3 ? "" : "id.secret.hash\\n" }] }
        machines = { node1: Machine.new("node1", :running, serves.merge(SHOWS)),
                     node2: Machine.new("node2", :running, NEW.merge("join.sh" => [0, "joined"])),
                     node3: Machine.new("node3", :poweroff, {}) }
        cluster = PodlaneVagrant::Cluster.new(THREE, wait: ->(seconds) { puts "(#{seconds} s)" })
        cluster.after_up(Env.new(machines), machines[:node2])
        """
    )
    assert said.splitlines() == [
        "node2# test -e /etc/podlane/install.json",
        "node2| waiting for node1 to admit it",
        "node1# sh token.sh node2",
        "(5 s)",
        "node1# sh token.sh node2",
        "(5 s)",
        "node1# sh token.sh node2",
        "node2# PODLANE_TOKEN=id.secret.hash sh join.sh node2 192.168.56.11",
        "node2| joined",
        "node1# sh demo.sh 3 node2",
        "node2| $ podlane get pods",
        "node1# sh demo.sh address",
        "node1# sh ask.sh node1 10.96.0.7",
        "node2# sh ask.sh node2 10.96.0.7",
    ]


def test_a_member_is_upgraded_without_the_first() -> None:
    said = ruby(
        """
        machines = { node1: Machine.new("node1", :poweroff, {}), node2: Machine.new("node2", :running, {}) }
        PodlaneVagrant::Cluster.new(THREE).after_up(Env.new(machines), machines[:node2])
        """
    )
    assert said.splitlines() == [
        "node2# test -e /etc/podlane/install.json",
        "node2# PODLANE_TOKEN= sh join.sh node2 192.168.56.11",
    ]


def test_what_is_not_complete_or_fails_is_said() -> None:
    said = ruby(
        """
        waits = ->(_seconds) {}
        cluster = PodlaneVagrant::Cluster.new(THREE, wait: waits)
        absent = { node1: Machine.new("node1", :not_created, {}), node2: Machine.new("node2", :running, NEW) }
        try { cluster.after_up(Env.new(absent), absent[:node2]) }
        alone = { node1: Machine.new("node1", :running, { "demo.sh" => [3, "1 of 3 machines are ready"] }) }
        cluster.after_up(Env.new(alone), alone[:node1])
        full = { node1: Machine.new("node1", :running, { "token.sh" => [0, "t"] }),
                 node2: Machine.new("node2", :running, NEW.merge("join.sh" => [1, "no room"])) }
        try { cluster.after_up(Env.new(full), full[:node2]) }
        broken = { node1: Machine.new("node1", :running, { "token.sh" => [4, ""] }),
                   node2: Machine.new("node2", :running, NEW) }
        try { cluster.after_up(Env.new(broken), broken[:node2]) }
        """
    )
    assert said.splitlines() == [
        "node2# test -e /etc/podlane/install.json",
        "node2| waiting for node1 to admit it",
        "error: podlane: node2 cannot join: node1 is not up; vagrant up node1",
        "node1# sh demo.sh 3 node1",
        "node1| 1 of 3 machines are ready",
        "node2# test -e /etc/podlane/install.json",
        "node2| waiting for node1 to admit it",
        "node1# sh token.sh node2",
        "node2# PODLANE_TOKEN=t sh join.sh node2 192.168.56.11",
        "node2| no room",
        "error: podlane: on node2: join.sh failed, see above",
        "node2# test -e /etc/podlane/install.json",
        "node2| waiting for node1 to admit it",
        "node1# sh token.sh node2",
        "error: podlane: node2 cannot join: node1's installation failed, see above",
    ]


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_the_scripts_are_shell(script: Path) -> None:
    subprocess.run(["sh", "-n", str(script)], check=True, timeout=30)


def test_the_scripts_name_what_there_is() -> None:
    text = {path.name: path.read_text() for path in SCRIPTS}
    assert RECORD in text["common.sh"]
    assert f"from {images.__name__} import web_tar" in text["image.sh"]
    assert images.WEB_IMAGE in text["image.sh"]
    for line in text["demo.sh"].splitlines():
        for word in line.split():
            if word.startswith("examples/"):
                assert (FOLDER.parent / "docs" / word).is_file()
