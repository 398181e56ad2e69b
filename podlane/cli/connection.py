"""Which cluster a command works on.

Owns: the order in which the ways to say it count: --etcd-endpoints or --lab
(typed beats environment), then the configuration file, then the one lab that
runs here. Invariant: never a guess; when nothing says where etcd is, or two
things say different, the error names the ways to say it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from podlane.cli.session import Given
from podlane.errors import Invalid, UsageError

if TYPE_CHECKING:
    from podlane.store.config import StoreConfig

CONFIG_FILE = "/etc/podlane/config.yaml"
_ETCD_OPTIONS = ("cafile", "certfile", "keyfile", "username", "password")


class EtcdSection(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """`etcd:` of the configuration file; the values are those of the --etcd-… options."""

    endpoints: tuple[str, ...]
    cafile: str = ""
    certfile: str = ""
    keyfile: str = ""
    username: str = ""
    password: str = ""


class ConfigFile(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The configuration file. Either `etcd` or `lab`."""

    etcd: EtcdSection | None = None
    lab: str = ""


def read_config(path: Path) -> ConfigFile:
    """Read the file. Raises UsageError, naming the file and the field."""
    import yaml

    try:
        config = msgspec.convert(yaml.safe_load(path.read_text()) or {}, ConfigFile)
    except OSError as error:
        raise UsageError(f"read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError, msgspec.ValidationError) as error:
        raise UsageError(f"read {path}: {error}") from error
    if config.etcd is not None and config.lab:
        raise UsageError(f"read {path}: expected etcd or lab, got both")
    return config


def _choose(options: Mapping[str, Given]) -> str:
    """`etcd_endpoints`, `lab`, or "" when neither option was given."""
    endpoints, lab = options.get("etcd_endpoints"), options.get("lab")
    if endpoints and lab:
        if endpoints.typed == lab.typed:
            raise UsageError("--etcd-endpoints and --lab: expected one of the two, got both")
        return "etcd_endpoints" if endpoints.typed else "lab"
    return "etcd_endpoints" if endpoints else "lab" if lab else ""


def _enter(lab: str, user: str) -> StoreConfig:
    from podlane.lab.context import enter

    return enter(lab, user)


def _running_labs() -> list[str]:
    from podlane.lab.context import running

    return running()


def resolve(options: Mapping[str, Given], *, lab_user: str = "operator") -> StoreConfig:
    """Where etcd is. For a lab, moves the process into the lab's network namespace; `lab_user` is who we are there.

    Raises UsageError when it cannot be told.
    """
    from podlane.store.config import StoreConfig, parse_endpoints

    given: dict[str, Any] = {name: options[f"etcd_{name}"].value for name in _ETCD_OPTIONS if f"etcd_{name}" in options}
    chosen = _choose(options)
    try:
        if chosen == "etcd_endpoints":
            return StoreConfig(endpoints=parse_endpoints(options["etcd_endpoints"].value), **given)
        if chosen == "lab":
            return _enter(options["lab"].value, lab_user)
        path = Path(options["config"].value if "config" in options else CONFIG_FILE)
        config = read_config(path) if "config" in options or path.exists() else ConfigFile()
        if config.etcd is not None:
            return StoreConfig(**{**msgspec.structs.asdict(config.etcd), **given})
    except Invalid as error:
        raise UsageError(str(error)) from error
    if config.lab:
        return _enter(config.lab, lab_user)
    return _enter(fallback(path, _running_labs()), lab_user)


def fallback(path: Path, labs: Sequence[str]) -> str:
    """The lab to take when nothing was said. Raises UsageError unless there is exactly one."""
    if len(labs) == 1:
        return labs[0]
    found = f"{len(labs)} labs are running ({', '.join(labs)})" if labs else "no lab is running"
    raise UsageError(
        f"find etcd: nothing says where it is and {found}; give --etcd-endpoints URL, --lab NAME "
        f"or write etcd.endpoints into {path}"
    )
