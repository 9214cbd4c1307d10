"""Tuning: which all-reduce is the fastest here, for every size; measured once and kept."""

import json
import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated

import numpy as np

from bigbatch.comm.cache import cache_folder, keep, kept_json
from bigbatch.comm.reducers.collective import Collective
from bigbatch.comm.reducers.measure import Reducing, measure
from bigbatch.comm.schema import Entries, NumberedFrom, Positive
from bigbatch.comm.wires.agreement import all_gather
from bigbatch.comm.wires.transport import Transport

SIZES = (1 << 10, 1 << 14, 1 << 18, 1 << 22, 1 << 24)
"""Bytes of the buffers to measure; a buffer of another size is judged by the nearest one."""

SECONDS_A_SIZE = 0.5
"""About how many seconds to measure each size."""


KeptTuning = Annotated[dict[str, Annotated[dict[str, Positive], Entries()]], Entries(), NumberedFrom(1)]
"""The schema of the table in the cache: seconds by size in bytes and by the name of the all-reduce."""


@dataclass(frozen=True)
class Tuning:
    """How long every all-reduce takes on one layout of ranks.

    Attributes:
        layout: the number of ranks on each node, and the wires between them.
        seconds: maps a size in bytes to the median seconds of each all-reduce by name.
        kept: whether the table is in the cache, on rank 0.
    """

    layout: str
    seconds: dict[int, dict[str, float]]
    kept: bool = True

    def ranking(self, nbytes: int) -> list[str]:
        """The names of the all-reduces, fastest first, for buffers of about `nbytes` bytes."""
        nearest = min(self.seconds, key=lambda size: abs(np.log(size) - np.log(max(1, nbytes))))
        times = self.seconds[nearest]
        return sorted(times, key=lambda name: times[name])


def layout_of(transport: Transport) -> str:
    """A name for where the ranks are and what they talk over: a table measured for one does not serve another."""
    nodes = "-".join(str(len(node)) for node in transport.nodes)
    return f"{transport.wires}-{nodes}"


def tune(collectives: Mapping[str, Collective], transport: Transport, say: Callable[[str], None]) -> Tuning:
    """Measures every size, and keeps the table for `load_tuning`. Every rank calls it and gets the same.

    Args:
        collectives: the all-reduces to measure, by name.
        transport: whose ranks take part.
        say: called with a line about what is measured next.
    """
    operations = {name: Reducing(collective) for name, collective in collectives.items()}
    seconds = {}
    for size in SIZES:
        say(f"measuring {len(collectives)} all-reduces of {size / 1024:,.0f} KB on {layout_of(transport)} ...")
        rows, _ = measure(operations, transport, size, SECONDS_A_SIZE)
        for row in rows:
            if not row.exact:
                say(f"{row.algorithm} is left out: it gave a wrong sum of {size / 1024:,.0f} KB")
        seconds[size] = {row.algorithm: row.median for row in rows if row.exact}
    kept = transport.rank != 0 or keep(cache_folder() / _file_name(transport), json.dumps(seconds, indent=1))
    return Tuning(layout_of(transport), seconds, kept)


def load_tuning(transport: Transport) -> Tuning | None:
    """Gives every rank the table that rank 0 has kept for this layout; None if nobody has measured it."""
    content = None
    if transport.rank == 0:
        content = kept_json(cache_folder() / _file_name(transport), KeptTuning)
    content = all_gather(transport, content, "look for a table of measurements")[0]
    if content is None:
        return None
    return Tuning(layout_of(transport), {int(size): times for size, times in content.items()})


def _file_name(transport: Transport) -> str:
    return f"tuning-{platform.node()}-{layout_of(transport)}.kept"
