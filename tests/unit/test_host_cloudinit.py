from __future__ import annotations

import json
import subprocess
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml
from cli_shell import Shell

from podlane.host.cloudinit import FOLDER, SCRIPT

pytestmark = pytest.mark.unit

SHA256 = "a" * 64
JOIN = ("--join", "https://192.0.2.1:10261", "--token", "id.secret.hash")
NODE = ("cloud-init", "--role", "node", *JOIN)
SERVER = ("cloud-init", "--role", "all", "--bundle", "/mnt/podlane.run")


@pytest.fixture
def shell() -> Shell:
    return Shell(init=False)


def config(text: str) -> dict:
    assert text.startswith("#cloud-config\n")
    return yaml.safe_load(text)


def script_of(text: str) -> str:
    [content] = [file["content"] for file in config(text)["write_files"] if file["path"] == SCRIPT]
    return content


def install_line(script: str) -> str:
    [line] = [line for line in script.splitlines() if " install " in line]
    return line.partition(" install ")[2]


def refusals(shell: Shell, *args: str) -> list[str]:
    result = shell.run(*args)
    assert result.exit_code == 2
    assert result.stdout == ""
    return [line.removeprefix("error: cloud-init: ") for line in result.stderr.splitlines()]


def test_a_server_with_an_etcd_of_its_own(shell):
    text = shell.ok(*SERVER, "--name", "s1", "--iface", "eth1", "--", "--network", "10.1.0.0/16")
    told = config(text)
    assert told["hostname"] == "s1"
    assert {"docker.io", "etcd-server", "etcd-client"} <= set(told["packages"])
    assert told["bootcmd"] == [["cloud-init-per", "instance", "podlane-mask-etcd", "systemctl", "mask", "etcd.service"]]
    assert told["runcmd"] == [["sh", SCRIPT]]
    assert install_line(script_of(text)) == "--role all --name s1 --iface eth1 --network 10.1.0.0/16"
    assert "token" not in text


def test_a_node_joins_and_keeps_the_token_to_itself(shell):
    text = shell.ok(*NODE, "--bundle", "/mnt/podlane.run")
    told = config(text)
    assert "# Holds a join token" in text
    assert [file["permissions"] for file in told["write_files"]] == ["0700"]
    assert install_line(script_of(text)) == "--role node --join https://192.0.2.1:10261 --token id.secret.hash"
    assert not {"etcd-server", "etcd-client"} & set(told["packages"])
    assert "bootcmd" not in told
    assert "hostname" not in told  # its own name stays


def test_packages_have_the_names_of_the_distribution_or_are_not_asked_for(shell):
    assert "moby-engine" in config(shell.ok(*SERVER, "--family", "fedora"))["packages"]
    bare = config(shell.ok(*SERVER, "--no-packages"))
    assert not {"packages", "package_update", "bootcmd"} & set(bare)
    server = config(shell.ok("cloud-init", "--role", "server", "--bundle", "/mnt/podlane.run"))
    assert "docker.io" not in server["packages"]


def test_keys_and_certificates_travel_along(shell, tmp_path):
    for name in ("ca", "cert", "key", "id.pub"):
        (tmp_path / name).write_text("ssh-ed25519 AAAA me\n" if name == "id.pub" else f"{name}\n")
    files = [word for name in ("ca", "cert", "key") for word in (f"--{name}", str(tmp_path / name))]
    text = shell.ok(
        *SERVER, "--etcd", "https://192.0.2.9:2379", *files, "--ssh-key", str(tmp_path / "id.pub"), "--ssh-key", "t K"
    )
    told = config(text)
    assert {(f["path"], f["permissions"], f["content"]) for f in told["write_files"] if f["path"] != SCRIPT} == {
        (f"{FOLDER}/ca.pem", "0600", "ca\n"),
        (f"{FOLDER}/client.pem", "0600", "cert\n"),
        (f"{FOLDER}/client.key", "0600", "key\n"),
    }
    assert told["ssh_authorized_keys"] == ["ssh-ed25519 AAAA me", "t K"]
    assert install_line(script_of(text)) == (
        f"--role all --etcd https://192.0.2.9:2379 --ca {FOLDER}/ca.pem --cert {FOLDER}/client.pem "
        f"--key {FOLDER}/client.key"
    )


def test_ignition_says_the_same_as_cloud_config(shell):
    arguments = (*NODE, "--bundle", "https://example.test/podlane.run", "--name", "n1", "--ssh-key", "t K")
    told = json.loads(shell.ok(*arguments, "--format", "ignition"))
    files = {f["path"]: unquote(f["contents"]["source"].removeprefix("data:,")) for f in told["storage"]["files"]}
    assert files == {SCRIPT: script_of(shell.ok(*arguments, "--no-packages")), "/etc/hostname": "n1\n"}
    assert {f["path"]: f["mode"] for f in told["storage"]["files"]} == {SCRIPT: 0o700, "/etc/hostname": 0o644}
    assert told["passwd"]["users"] == [{"name": "core", "sshAuthorizedKeys": ["t K"]}]
    assert f"ExecStart=/bin/sh {SCRIPT}" in told["systemd"]["units"][0]["contents"]


def test_what_is_wrong_is_told_at_once(shell):
    wrong = ("cloud-init", "--role", "node", "--bundle", "http://192.0.2.1/podlane.run", "--ssh-key", "x PRIVATE KEY")
    assert refusals(shell, *wrong) == [
        "--join: a node needs --join URL --token TOKEN, or --etcd URL with --ca and --cert-dir",
        "--sha256: expected the bundle's SHA-256 sum, as it comes over plain http",
        '--ssh-key: expected a public key such as "ssh-ed25519 AAAA…", got "x PRIVATE KEY"',
    ]
    assert refusals(shell, *NODE, "--bundle", "podlane.run", "--sha256", "12") == [
        '--bundle: expected http://…, https://… or a path on the machine, got "podlane.run"',
        '--sha256: expected 64 hexadecimal digits, got "12"',
    ]


def run_script(script: str, folder: Path, **programs: str) -> subprocess.CompletedProcess[str]:
    """With these programs in the place of the system's; each notes its arguments in `calls`."""
    for name, body in {"systemctl": "", "sleep": "", **programs}.items():
        file = folder / name
        file.write_text(f'#!/bin/sh\necho "{name} $*" >> {folder}/calls\n{body}\n')
        file.chmod(0o755)
    return subprocess.run(
        ["sh", "-c", script.replace(FOLDER, str(folder))],
        env={"PATH": f"{folder}:/usr/bin:/bin"},
        capture_output=True,
        text=True,
        timeout=30,
        check=False,
    )


def test_the_script_installs_what_has_the_right_sum_and_tries_again_while_the_server_is_not_up(shell, tmp_path):
    bundle = tmp_path / "source.run"
    # fails the first time, as a join does while nobody listens there
    bundle.write_text(
        f'echo "bundle $*" >> {tmp_path}/calls\n[ -e {tmp_path}/up ] || {{ touch {tmp_path}/up; exit 1; }}\n'
    )
    sum_ = subprocess.run(["sha256sum", bundle], capture_output=True, text=True, check=True).stdout.split()[0]
    url = ("--bundle", "http://192.0.2.1/podlane.run", "--sha256", sum_)
    script = script_of(shell.ok(*NODE, *url))
    curl = f'[ -e {tmp_path}/net ] || {{ touch {tmp_path}/net; exit 7; }}\ncp {bundle} "$3"'
    done = run_script(script, tmp_path, curl=curl)
    assert done.returncode == 0, done.stderr
    get, install = f"curl -fsSL -o {tmp_path}/podlane.run http://192.0.2.1/podlane.run", "bundle install --role node"
    calls = [line.partition(" --join")[0] for line in (tmp_path / "calls").read_text().splitlines()]
    assert calls == [get, "sleep 15", get, "systemctl is-active --quiet docker.service", install, "sleep 15", install]


def test_the_script_starts_nothing_whose_sum_is_wrong(shell, tmp_path):
    script = script_of(shell.ok(*NODE, "--bundle", "http://192.0.2.1/podlane.run", "--sha256", SHA256))
    done = run_script(script, tmp_path, curl='echo "touch owned" > "$3"')
    assert done.returncode == 1
    assert "nothing is installed" in done.stdout
    assert not (tmp_path / "owned").exists()
