"""Simulated updates: what each took every worker, which of them count, and their means."""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bigbatch.comm.schedules.schedule import IntArray
from bigbatch.comm.simulation.network import FloatArray, Network
from bigbatch.experiments.planning.workload import Workload

ALIKE = 1e-9
"""Relative difference up to which two durations count as the same."""

MOSTLY = 2 / 3
"""The part of the updates that must be alike for a period to be believed. In the first ones ranks may still agree on
what they are about to send; and half would not do, for half of them may be quiet before something happens."""


@dataclass(frozen=True)
class Row:
    """One strategy on one number of workers.

    Attributes:
        strategy: its name.
        workers: how many compute.
        network: the network's name.
        step_seconds: an update takes, in the mean.
        compute_seconds: of it, a worker computes.
        communication_seconds: of it, a worker stands still while data move.
        waiting_seconds: of it, a worker stands still for slower ones.
        tokens_per_second: of all workers together; tokens whose gradients are dropped do not count.
        efficiency: that, over the tokens a second of as many workers that exchange nothing and are never slowed. It is
            at most 1 unless random factors make computing quicker.
        busiest_port_bytes: through the busiest port in an update, in the mean, to the nearest byte: everything that is
            sent or received there, small messages too.
        exact: whether every message was followed, and the means are those of whole periods. They are not if messages
            that overtake others are too many to be followed, or if a strategy that does not say after how many updates
            it repeats itself did not do so in those that were run: 33 on up to 64 ranks, and fewer on more.
    """

    strategy: str
    workers: int
    network: str
    step_seconds: float
    compute_seconds: float
    communication_seconds: float
    waiting_seconds: float
    tokens_per_second: float
    efficiency: float
    busiest_port_bytes: int
    exact: bool = True


def settled(table: NDArray[Any], period: int, tolerance: float = 0.0) -> int:
    """How many of the last rows of a table, (rows, columns), repeat themselves after `period` rows: whole periods.

    Args:
        table: of numbers.
        period: in rows.
        tolerance: relative difference up to which two numbers count as the same.

    Returns:
        At least two periods, or 0 if the last one is not like the one before it.
    """
    earlier, later = table[:-period], table[period:]
    others = np.flatnonzero(~np.isclose(earlier, later, rtol=tolerance, atol=0).all(axis=1))
    alike = len(later) - 1 - int(others[-1]) if len(others) else len(later)
    return (alike // period + 1) * period if alike >= period else 0


def whole_periods(steps: FloatArray, passed: IntArray, period: int | None, *, random: bool) -> tuple[range, bool]:
    """Which updates to take the mean of: whole periods, and never the first update unless there is no other.

    All workers begin the first update at the same moment, and most of the later ones not: who was served first by a
    busy port goes on first.

    Args:
        steps: (updates, workers) seconds.
        passed: (updates, ports) bytes.
        period: in updates. None to find it out: of all updates but the first, the bytes of the last `MOSTLY` must
            repeat themselves, and the workers' mean durations in the last periods, which alone then count.
        random: whether random factors are among what made the durations, so that those cannot repeat themselves.

    Returns:
        The numbers of the updates, and whether those are whole periods.
    """
    later = len(steps) - 1
    if later < 1:
        return range(len(steps)), True
    if period is not None:
        return range(1 + (later % period if period <= later else 0), 1 + later), period <= later
    bytes_, means = passed[1:], steps[1:].mean(axis=1, keepdims=True)
    for found in range(1, later // 2 + 1):
        alike = settled(bytes_, found)
        if alike >= MOSTLY * later:
            multiples = range(found, later // 2 + 1, found)
            timed = next((rows for times in multiples if (rows := settled(means, times, ALIKE))), 0)
            counted = min(alike, timed) if timed and not random else alike
            return range(1 + later - counted, 1 + later), random or timed > 0
    return range(1, 1 + later), False


class Updates:
    """What some updates took every worker.

    Args:
        steps: (updates, workers) seconds that each update took each worker; NaN where a worker made fewer updates.
        computing: (updates, workers) seconds of it that the worker computed.
        waiting: (updates, workers) seconds of it that the worker stood still for slower workers.
        passed: (updates, ports) bytes that passed each port for each update.
        counted: the numbers of the updates that count; a worker that made none of them counts with those it made.
        useful: the share of all gradients that went into updates instead of being dropped.
        exact: see `Row`.

    Attributes:
        busiest: bytes through the busiest port in an update, in the mean.
    """

    def __init__(
        self,
        steps: FloatArray,
        computing: FloatArray,
        waiting: FloatArray,
        passed: IntArray,
        counted: range,
        *,
        useful: float = 1.0,
        exact: bool = True,
    ) -> None:
        made = ~np.isnan(steps)
        among = made & np.isin(np.arange(len(steps)), counted)[:, None]
        among[:, ~among.any(axis=0)] = made[:, ~among.any(axis=0)]
        self._among = among
        # Differences of times are a little off; an update never takes less than its computing.
        self._steps = np.maximum(steps, computing)
        self._computing, self._waiting = computing, waiting
        self._useful, self._exact = useful, exact
        updates = among[counted].sum() / among.shape[1]
        self.busiest = round(float(passed[counted].sum(axis=0).max(initial=0)) / updates) if updates else 0

    @property
    def shortest(self) -> float:
        """Seconds of the quickest worker's quickest update."""
        return float(self._steps[self._among].min())

    @property
    def longest(self) -> float:
        """Seconds of the slowest worker's slowest update."""
        return float(self._steps[self._among].max())

    def row(self, strategy: str, workers: int, network: Network, workload: Workload, busiest: int) -> Row:
        """Their means."""
        columns = (self._steps, self._computing, self._waiting)
        step, compute, waiting = (float(column[self._among].mean()) for column in columns)
        # Sums that are rounded once: no worker's part of its time that it computes comes out above 1.
        own = [
            (int(these.sum()), math.fsum(times[these]))
            for times, these in zip(self._steps.T, self._among.T, strict=True)
        ]
        alone = math.fsum(count * workload.compute / seconds if seconds else 1.0 for count, seconds in own) / workers
        rate = math.fsum(count / seconds for count, seconds in own if seconds)
        return Row(
            strategy,
            workers,
            network.name,
            step_seconds=step,
            compute_seconds=compute,
            communication_seconds=max(0.0, step - compute - waiting),
            waiting_seconds=waiting,
            tokens_per_second=self._useful * workload.tokens * rate,
            efficiency=self._useful * alone,
            busiest_port_bytes=busiest,
            exact=self._exact,
        )
