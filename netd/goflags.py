"""flanneld's command line, as Go's flag package reads it, turned into click's.

Owns: the syntax (`-iface eth1`, `--iface=eth1`, `-ip-masq`, `--ip-masq=false`),
which of flanneld's flags have no effect here, and which cannot be had. So that
a unit file written for flanneld needs another program name and nothing else,
a flag of its logger is no mistake; one that changes where leases are kept is.
Sources: Go's flag package (parseOne, strconv.ParseBool), klog's InitFlags,
flannel's main.go.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import click

IGNORED = "netd.ignored"
"""Where in a context's `meta` the flags are that had no effect."""

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})

# whether they take a value
_LOGGER_FLAGS = {
    "v": True,
    "vmodule": True,
    "stderrthreshold": True,
    "log_backtrace_at": True,
    "log_dir": True,
    "log_file": True,
    "log_file_max_size": True,
    "logtostderr": False,
    "alsologtostderr": False,
    "legacy_stderr_threshold_behavior": False,
    "add_dir_header": False,
    "skip_headers": False,
    "skip_log_headers": False,
    "one_output": False,
    "persistent-mac": False,  # netd's always is
}

_KUBERNETES_FLAGS = (
    "kube-subnet-mgr",
    "kube-api-url",
    "kube-annotation-prefix",
    "kubeconfig-file",
    "set-node-network-unavailable",
    "use-multi-cluster-cidr",
)


class Boolean(click.ParamType[bool]):
    """True or false as Go has them. On the command line the name alone means true, `--no-` before it false."""

    name = "true|false"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> bool:
        if isinstance(value, bool):
            return value
        if value not in _TRUE | _FALSE:
            self.fail(f'expected true or false, got "{value}"', param, ctx)
        return value in _TRUE


@dataclass(frozen=True, slots=True)
class Normalized:
    """`args` are as click wants them; `ignored` are the flags that were left out."""

    args: tuple[str, ...]
    ignored: tuple[str, ...] = ()


def normalize(args: Sequence[str], *, booleans: Collection[str], valued: Collection[str]) -> Normalized:
    """Read Go's syntax; names are those of the long options, without dashes. Raises click.UsageError.

    What is not known is passed on, with two dashes, for click to refuse.
    """
    left = list(args)
    out: list[str] = []
    ignored: list[str] = []
    while left:
        word = left.pop(0)
        if not word.startswith("-") or word == "-":
            out.append(word)
            continue
        if word == "--":
            out += [word, *left]
            break
        name, equals, value = word.removeprefix("-").removeprefix("-").partition("=")
        logger_flag = _LOGGER_FLAGS.get(name.replace("-", "_"), _LOGGER_FLAGS.get(name))
        if logger_flag is not None:
            if logger_flag and not equals and left:
                word = f"{word} {left.pop(0)}"
            ignored.append(word)
        elif name in _KUBERNETES_FLAGS:
            if value not in _FALSE:
                raise click.UsageError(_no_kubernetes(f"--{name}"))
        elif name in booleans:
            out.append(f"--{name}={value if equals else 'true'}")
        elif name.startswith("no-") and name.removeprefix("no-") in booleans and not equals:
            out.append(f"--{name.removeprefix('no-')}=false")
        elif name in valued and not equals and left:
            out.append(f"--{name}={left.pop(0)}")
        else:
            out.append(word if name == "h" else f"--{name}{equals}{value}")
    return Normalized(tuple(out), tuple(ignored))


def from_environment(environ: Mapping[str, str]) -> tuple[str, ...]:
    """The variables of flanneld's logger, which have no effect. Raises click.UsageError for Kubernetes' ones."""
    for variable in map(_variable, _KUBERNETES_FLAGS):
        if (value := environ.get(variable)) and value not in _FALSE:
            raise click.UsageError(_no_kubernetes(f"{variable}={value}"))
    return tuple(_variable(name) for name in _LOGGER_FLAGS if environ.get(_variable(name)))


class GoCommand(click.Command):
    """A click command whose options are written as flanneld's are."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        names: dict[bool, set[str]] = {True: set(), False: set()}
        for param in self.params:
            if isinstance(param, click.Option) and not param.is_flag:
                names[isinstance(param.type, Boolean)].update(each.lstrip("-") for each in param.opts)
        try:
            read = normalize(args, booleans=names[True], valued=names[False])
        except click.UsageError as error:
            if ctx.resilient_parsing:  # a shell asks for completions in the middle of a line
                return super().parse_args(ctx, args)
            error.ctx = ctx
            raise
        ctx.meta[IGNORED] = read.ignored
        return super().parse_args(ctx, list(read.args))


def _variable(name: str) -> str:
    return f"FLANNELD_{name.upper().replace('-', '_')}"


def _no_kubernetes(what: str) -> str:
    return (
        f"{what}: netd keeps leases in etcd and does not ask the Kubernetes API; "
        "leave it out and give --etcd-endpoints, or stay with flanneld on such a cluster"
    )
