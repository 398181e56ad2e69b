"""pyroute2's IPRoute, without the rest of pyroute2.

Owns: the import. Importing any part of pyroute2 runs its __init__, which
imports all of it (nftables, WireGuard, IPVS, nl80211, NDB, …): 9.5 MB in
pyroute2 0.9.7, of which netd uses less than half. So the package enters
`sys.modules` with that __init__ not run yet; it runs when something asks the
package for a name that is no submodule of it. Whoever imports pyroute2 later
in this process therefore sees the whole package, and one that was imported
before is left as it is.
"""

from __future__ import annotations

import importlib
import sys
from importlib.machinery import ModuleSpec
from importlib.util import find_spec, module_from_spec
from types import ModuleType

_NAME = "pyroute2"


class _Postponed(ModuleType):
    """A package whose __init__ runs when the first name is wanted that only it can give."""

    def __getattr__(self, name: str) -> object:
        spec = self.__spec__
        assert spec is not None
        if name.startswith("__"):
            raise AttributeError(f"module {spec.name!r} has no attribute {name!r}")
        if find_spec(f"{spec.name}.{name}") is not None:
            return importlib.import_module(f"{spec.name}.{name}")
        assert spec.loader is not None
        self.__class__ = ModuleType  # type: ignore[assignment]  # what the interpreter itself would have made
        spec.loader.exec_module(self)
        return getattr(self, name)


def _postpone(spec: ModuleSpec) -> None:
    module = module_from_spec(spec)
    module.__class__ = _Postponed
    sys.modules[spec.name] = module


if _NAME not in sys.modules and (_spec := find_spec(_NAME)) is not None:
    _postpone(_spec)

from pyroute2.iproute.linux import IPRoute  # noqa: E402
from pyroute2.netlink.exceptions import NetlinkDecodeError  # noqa: E402
from pyroute2.netlink.exceptions import NetlinkError as IPRouteError  # noqa: E402

__all__ = ["IPRoute", "IPRouteError", "NetlinkDecodeError"]
