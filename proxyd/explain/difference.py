"""`proxyd plan`: what proxyd would change now, as an nft script. Nothing is written here."""

from __future__ import annotations

from collections.abc import Iterator

from proxyd.explain.view import Seen, has_static_part
from proxyd.plan import plan_all
from proxyd.tables import FAMILIES, TABLE, Tables


def difference(seen: Seen) -> str:
    """Empty when the tables are as the store wants them."""
    return "\n".join(_parts(seen))


def _parts(seen: Seen) -> Iterator[str]:
    for family in FAMILIES:
        skeleton, tables = seen.skeleton(family), seen.kernel.tables.get(family)
        there = tables is not None or family in seen.kernel.unreadable
        if skeleton is None:
            if there:
                yield f"delete table {family.name} {TABLE}"
            continue
        if tables is None or not has_static_part(skeleton, seen.kernel.skeletons.get(family)):
            # a table that is not of this version cannot be kept
            yield skeleton.script(anew=family in seen.kernel.unreadable).rstrip()
        plan = plan_all(tables or Tables(family), seen.index)
        if plan:
            yield str(plan)
