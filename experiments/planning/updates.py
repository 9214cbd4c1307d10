"""Simulated updates: what each took every worker, which of them count, and their means."""

import math
from dataclasses import dataclass

import numpy as np

from bigbatch.comm.schedules.schedule import IntArray
from bigbatch.comm.simulation.network import FloatArray, Network
from bigbatch.experiments.planning.workload import Workload

ALIKE = 1e-9
"""Relative difference up to which two durations count as the same."""


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


def repeating(table: IntArray) -> int | None:
    """After how many rows a table, (rows, columns), repeats itself; None if it does not do so even once."""
    periods = range(1, len(table) // 2 + 1)
    return next((period for period in periods if np.array_equal(table[period:], table[:-period])), None)


def settled(seconds: FloatArray, period: int) -> int | None:
    """How many of the last of some durations, (updates,), repeat themselves after `period` updates: whole periods.

    None if the last period is not like the one before it.
    """
    earlier, later = seconds[:-period], seconds[period:]
    others = np.flatnonzero(~np.isclose(earlier, later, rtol=ALIKE, atol=0))
    alike = len(later) - 1 - int(others[-1]) if len(others) else len(later)
    return (alike // period + 1) * period if alike >= period else None


def whole_periods(steps: FloatArray, passed: IntArray, period: int | None, *, random: bool) -> tuple[range, bool]:
    """Which updates to take the mean of: whole periods, and never the first update unless there is no other.

    All workers begin the first update at the same moment, and most of the later ones not: who was served first by a
    busy port goes on first.

    Args:
        steps: (updates, workers) seconds.
        passed: (updates, ports) bytes.
        period: in updates. None to find it out: the bytes of all updates but the first must repeat themselves, and of
            the workers' mean durations those of the last updates, which alone then count.
        random: whether random factors are among what made the durations, so that those cannot repeat themselves.

    Returns:
        The numbers of the updates, and whether those are whole periods.
    """
    later = len(steps) - 1
    if later < 1:
        return range(len(steps)), True
    counted: int | None = later
    if period is None:
        period = repeating(passed[1:])
        if period is not None and not random:
            longer = (settled(steps[1:].mean(axis=1), times) for times in range(period, later // 2 + 1, period))
            counted = next((rows for rows in longer if rows is not None), None)
    if period is None or period > later:
        return range(1, 1 + later), False
    whole = later if counted is None else counted
    return range(1 + later - whole // period * period, 1 + later), counted is not None


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
