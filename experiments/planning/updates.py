"""Simulated updates: how long each took every worker, which of them count, and their means."""

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
"""The share of the updates that must repeat themselves for a period to be accepted. It is below 1 because in the first
updates ranks may still agree on what they will send, and above a half because half of them may be quiet before
something happens."""


@dataclass(frozen=True)
class Row:
    """The mean times of simulated updates with one strategy on one number of workers.

    Attributes:
        strategy: name of the strategy.
        workers: number of workers.
        network: name of the network.
        step_seconds: mean seconds that an update takes.
        compute_seconds: mean seconds of an update that a worker computes.
        communication_seconds: mean seconds of an update that a worker stands still while data move.
        waiting_seconds: mean seconds of an update that a worker stands still for slower workers.
        tokens_per_second: throughput of all workers together; tokens whose gradients are dropped do not count.
        efficiency: throughput divided by that of as many workers that exchange nothing and are never slowed. It is at
            most 1 unless random factors make computing quicker.
        busiest_port_bytes: mean number of bytes that the busiest port sends and receives in an update, rounded; small
            messages count too.
        exact: whether every message was followed, and the means are over whole periods. It is False if too many
            messages overtake others to be followed, or if a strategy that does not say after how many updates it
            repeats itself did not do so in those that were run: 33 on up to 64 ranks, and fewer on more.
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
    """Counts the last rows of a table that repeat themselves after `period` rows, in whole periods.

    Args:
        table: (rows, columns) numbers.
        period: number of rows in a period.
        tolerance: relative difference up to which two numbers count as the same.

    Returns:
        The number of rows, at least two periods; 0 if the last period is not like the one before it.
    """
    earlier, later = table[:-period], table[period:]
    others = np.flatnonzero(~np.isclose(earlier, later, rtol=tolerance, atol=0).all(axis=1))
    alike = len(later) - 1 - int(others[-1]) if len(others) else len(later)
    return (alike // period + 1) * period if alike >= period else 0


def whole_periods(steps: FloatArray, passed: IntArray, period: int | None, *, random: bool) -> tuple[range, bool]:
    """Chooses the updates to average over: whole periods, without the first update unless there is no other.

    The first update is special because all workers start it at the same moment. Later, a worker that a busy port has
    served first starts its next update first.

    Args:
        steps: (updates, workers) seconds.
        passed: (updates, ports) bytes.
        period: number of updates in a period; None to find it. It is found if the bytes of the last `MOSTLY` of all
            updates but the first repeat themselves. Then only the last periods count, in which the workers' mean
            durations repeat themselves too.
        random: whether random factors changed the durations, so that these cannot repeat themselves.

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
    """The times of some simulated updates, for every worker.

    Args:
        steps: (updates, workers) seconds that each update took each worker; NaN where a worker made fewer updates.
        computing: (updates, workers) seconds of it that the worker computed.
        waiting: (updates, workers) seconds of it that the worker stood still for slower workers.
        passed: (updates, ports) bytes that passed each port for each update.
        counted: the numbers of the updates that count; a worker that made none of them counts with those it made.
        useful: the share of all gradients that went into updates instead of being dropped.
        exact: see `Row`.

    Attributes:
        busiest: mean number of bytes through the busiest port in an update.
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
        """Seconds of the shortest counted update of any worker."""
        return float(self._steps[self._among].min())

    @property
    def longest(self) -> float:
        """Seconds of the longest counted update of any worker."""
        return float(self._steps[self._among].max())

    def row(self, strategy: str, workers: int, network: Network, workload: Workload, busiest: int) -> Row:
        """Averages the counted updates, and makes the row of one strategy on one number of workers."""
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
