"""`netd docker-opts` against what mk-docker-opts.sh writes (run under bash to get these outputs)."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from netd.dockeropts import docker_opts, routed_elsewhere

pytestmark = pytest.mark.unit

SUBNET_ENV = """\
FLANNEL_NETWORK=10.5.0.0/16
FLANNEL_SUBNET=10.5.34.1/24
FLANNEL_MTU=1450
FLANNEL_IPMASQ=true
"""

BIP = 'DOCKER_OPT_BIP="--bip=10.5.34.1/24"\n'
IPMASQ = 'DOCKER_OPT_IPMASQ="--ip-masq=false"\n'
MTU = 'DOCKER_OPT_MTU="--mtu=1450"\n'
ALL = "--bip=10.5.34.1/24 --ip-masq=false --mtu=1450"


@pytest.fixture
def files(tmp_path: Path) -> tuple[Path, Path]:
    source = tmp_path / "subnet.env"
    source.write_text(SUBNET_ENV)
    return source, tmp_path / "docker_opts.env"


def invoke(files: tuple[Path, Path], *flags: str, **environment: str) -> Result:
    return CliRunner().invoke(docker_opts, ["-f", str(files[0]), "-d", str(files[1]), *flags], env=environment)


def written(files: tuple[Path, Path], *flags: str, **environment: str) -> str:
    result = invoke(files, *flags, **environment)
    assert (result.exit_code, result.output) == (0, "")
    return files[1].read_text()


@pytest.mark.parametrize(
    ("flags", "expected"),
    [
        ((), f'{BIP}{IPMASQ}{MTU}DOCKER_OPTS=" {ALL}"\n'),
        (("-i", "-c"), f'{BIP}{IPMASQ}{MTU}DOCKER_OPTS=" {ALL}"\n'),
        (("-i",), f"{BIP}{IPMASQ}{MTU}"),
        (("-c",), f'DOCKER_OPTS=" {ALL}"\n'),
        (("-k", "KEY"), f'{BIP}{IPMASQ}{MTU}KEY=" {ALL}"\n'),
        (("-m",), f'{BIP}{MTU}DOCKER_OPTS=" --bip=10.5.34.1/24 --mtu=1450"\n'),
        (("-icm", "-kX"), f'{BIP}{MTU}X=" --bip=10.5.34.1/24 --mtu=1450"\n'),
    ],
)
def test_the_scripts_output(files: tuple[Path, Path], flags: tuple[str, ...], expected: str) -> None:
    assert written(files, *flags) == expected


def test_docker_masquerades_when_flannel_does_not(files: tuple[Path, Path]) -> None:
    files[0].write_text(SUBNET_ENV.replace("true", "false"))
    assert written(files, "-c") == 'DOCKER_OPTS=" --bip=10.5.34.1/24 --ip-masq=true --mtu=1450"\n'


@pytest.mark.parametrize(
    ("environment", "flags", "expected"),
    [
        ({"DOCKER_OPTS": "--debug -l warn"}, ("-c",), f'DOCKER_OPTS="--debug -l warn  {ALL}"\n'),
        ({"X": "old", "DOCKER_OPTS": "no"}, ("-c", "-k", "X"), f'X="old  {ALL}"\n'),
        ({"DOCKER_OPT_ZZ": "--zz", "DOCKER_OPT_AA": "--aa"}, ("-c",), f'DOCKER_OPTS=" --aa {ALL} --zz"\n'),
        ({"DOCKER_OPT_BIP": "--bip=1.2.3.4/8"}, ("-i",), f"{BIP}{IPMASQ}{MTU}"),
        ({"DOCKER_OPT_IPMASQ": "--ip-masq=true"}, ("-i", "-m"), f"{BIP}{IPMASQ.replace('false', 'true')}{MTU}"),
        ({"DOCKER_OPT_EMPTY": ""}, ("-c",), f'DOCKER_OPTS="{f" {ALL}".replace(" --ip", "  --ip")}"\n'),
        # the script writes a line of rubbish here
        ({"DOCKER_OPT_SP": "--a  --b"}, ("-i",), f'{BIP}{IPMASQ}{MTU}DOCKER_OPT_SP="--a --b"\n'),
    ],
)
def test_variables_that_are_there_already(
    files: tuple[Path, Path], environment: dict[str, str], flags: tuple[str, ...], expected: str
) -> None:
    assert written(files, *flags, **environment) == expected


def test_an_output_file_that_is_there_does_not_count(files: tuple[Path, Path]) -> None:
    files[1].write_text('DOCKER_OPTS="--old"\nDOCKER_OPT_OLD="--old"\n')
    assert written(files, "-c") == f'DOCKER_OPTS=" {ALL}"\n'


def test_the_file_keeps_its_place_behind_a_link(files: tuple[Path, Path], tmp_path: Path) -> None:
    real = tmp_path / "real.env"
    files[1].symlink_to(real)
    written(files)
    assert files[1].is_symlink()
    assert real.read_text().startswith(BIP)


def test_what_is_no_file_does_not_become_one(files: tuple[Path, Path]) -> None:
    """As `-d /dev/stdout` must leave that as it is."""
    os.mkfifo(files[1])
    reader = os.open(files[1], os.O_RDWR | os.O_NONBLOCK)
    try:
        assert invoke(files, "-i").exit_code == 0
        assert os.read(reader, 1000).decode() == BIP + IPMASQ + MTU
    finally:
        os.close(reader)
    assert files[1].is_fifo()


def test_quotes_comments_and_what_else_a_shell_reads(files: tuple[Path, Path]) -> None:
    files[0].write_text(
        "# written by hand\nexport FLANNEL_SUBNET='10.5.34.1/24'\nFLANNEL_MTU=\"1450\" # less\n"
        "DOCKER_OPT_X=--x\nDOCKER_OPT_A-B=1\n"
    )
    assert written(files, "-c") == 'DOCKER_OPTS=" --bip=10.5.34.1/24 --mtu=1450 --x"\n'


def test_ipv6_alone_gives_docker_no_bridge_address(files: tuple[Path, Path]) -> None:
    files[0].write_text("FLANNEL_IPV6_NETWORK=fd00::/56\nFLANNEL_IPV6_SUBNET=fd00:0:0:1::1/64\nFLANNEL_MTU=1430\n")
    assert written(files, "-c") == 'DOCKER_OPTS=" --mtu=1430"\n'


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "FLANNEL_SUBNET is missing"),
        ("FLANNEL_SUBNET=\n", "FLANNEL_SUBNET is missing"),
        ("FLANNEL_SUBNET=10.5.34.1\n", 'FLANNEL_SUBNET: expected an address with its prefix length, got "10.5.34.1"'),
        ("FLANNEL_SUBNET=10.5.34.1/33\n", "'33' is not a valid netmask"),
        ("FLANNEL_SUBNET=fd00::1/64\n", "Expected 4 octets"),
        ("FLANNEL_IPV6_SUBNET=10.5.34.1/24\n", "At least 3 parts expected"),
        (SUBNET_ENV.replace("1450", "14x"), 'FLANNEL_MTU: expected a number of bytes, got "14x"'),
        (SUBNET_ENV.replace("true", "yes"), 'FLANNEL_IPMASQ: expected true or false, got "yes"'),
        ("FLANNEL_SUBNET='10.5.34.1/24\n", "No closing quotation"),
        ("\udcff", "can't decode byte"),
    ],
)
def test_a_subnet_file_that_is_none_changes_nothing(files: tuple[Path, Path], text: str, message: str) -> None:
    files[0].write_text(text, errors="surrogateescape")
    files[1].write_text("before\n")
    result = invoke(files)
    assert result.exit_code == 1
    assert result.stderr.startswith(f"error: read {files[0]}: ")
    assert message in result.stderr
    assert files[1].read_text() == "before\n"


def test_a_missing_subnet_file(files: tuple[Path, Path]) -> None:
    files[0].unlink()
    result = invoke(files)
    assert (result.exit_code, result.stderr) == (
        1,
        f"error: read {files[0]}: No such file or directory; does netd run?\n",
    )
    assert not files[1].exists()


@pytest.mark.parametrize("key", ["", "A B", "1X", "A=B"])
def test_a_key_must_be_a_variable(files: tuple[Path, Path], key: str) -> None:
    result = invoke(files, "-k", key)
    assert result.exit_code == 2
    assert f'expected the name of a variable, got "{key}"' in result.output


ROUTES = """\
Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT
eth0\t00000000\t0140A8C0\t0003\t0\t0\t100\t00000000\t0\t0\t0
eth0\t0022050A\t0C40A8C0\t0003\t0\t0\t0\t00FFFFFF\t0\t0\t0
eth0\t0023050A\t0C40A8C0\t0003\t0\t0\t0\t0000FFFF\t0\t0\t0
docker0\t0024050A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0
"""


@pytest.mark.parametrize(
    ("subnet", "gateway"),
    [
        ("10.5.34.1/24", "192.168.64.12"),
        ("10.5.35.1/24", ""),  # there for a larger subnet only
        ("10.5.36.1/24", ""),  # connected
        ("10.5.37.1/24", ""),
    ],
)
def test_a_subnet_that_is_routed_elsewhere(subnet: str, gateway: str) -> None:
    assert routed_elsewhere(ROUTES, subnet) == gateway
