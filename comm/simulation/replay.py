"""Replay: schedules timed on all ranks at once, as `execute` would run them over a network.

Round by round in NumPy, as long as every port serves its messages in the order of the rounds. Where a rank that is
early overtakes one that is late, the messages are followed one by one instead, in the order of time.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import ArrayLike

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.schedules.schedule import IntArray, Schedule
from bigbatch.comm.simulation.message_by_message import message_by_message
from bigbatch.comm.simulation.network import FloatArray, Hop, Network
from bigbatch.comm.simulation.phases import Phase, messages_of, transfer_count
from bigbatch.comm.simulation.round_by_round import Overtaking, round_by_round

__all__ = ["MOST_FOLLOWED", "Phase", "port_bytes", "replay", "replay_phases"]

MOST_FOLLOWED = 10_000_000
"""The largest number of transfers that are followed one by one; so many take about a minute and a few gigabytes."""


def replay(
    schedule: Schedule,
    network: Network,
    size: int,
    elements: int,
    itemsize: int = 4,
    *,
    rounded: bool = False,
    starts: ArrayLike = 0.0,
    speeds: ArrayLike = 1.0,
) -> FloatArray:
    """The second at which each rank has finished a schedule.

    Args:
        schedule: the rounds as a function of the number of ranks.
        network: what messages cost.
        size: the number of ranks.
        elements: the length of each rank's buffer.
        itemsize: bytes per element on the wires.
        rounded: whether elements are sent in half precision; see `Phase`.
        starts: (ranks,) the second at which each starts, or one number for all.
        speeds: (ranks,) how many times as fast as γ says each adds; or one number for all.

    Returns:
        (ranks,) seconds.

    Raises:
        ConfigurationError: the schedule cannot be made for so many ranks, a speed is not above 0, or too many messages
            overtake each other.
    """
    (ends,) = replay_phases(
        [Phase(schedule, elements, starts, itemsize, rounded=rounded)], network, size, speeds=speeds
    )
    return np.asarray(ends)


def replay_phases(
    phases: Sequence[Phase],
    network: Network,
    size: int,
    *,
    speeds: ArrayLike = 1.0,
    roughly: Callable[[], None] | None = None,
) -> FloatArray:
    """The second at which each rank has finished each of several schedules, one after the other on the same ports.

    Args:
        phases: the schedules.
        network: what messages cost.
        size: the number of ranks.
        speeds: (ranks,) how many times as fast as γ says each adds; or one number for all.
        roughly: called if messages overtake each other and are too many to be followed one by one: they are then
            served in the order of the rounds, as if nobody were ahead. If it is None, that is an error.

    Returns:
        (phases, ranks) seconds.

    Raises:
        ConfigurationError: a speed that is not above 0, or too many messages that overtake each other.
    """
    ports = network.for_ranks(size)
    if not (np.isfinite(speeds) & (np.asarray(speeds) > 0)).all():
        raise ConfigurationError("A rank's speed must be a number above 0.")
    adding = np.broadcast_to(network.gamma / np.asarray(speeds, np.float64), size)
    ready = np.stack([np.broadcast_to(np.asarray(phase.ready, np.float64), size) for phase in phases])
    try:
        return round_by_round(phases, ready, ports, adding)
    except Overtaking:
        transfers = transfer_count(phases, size)
        if transfers <= MOST_FOLLOWED:
            return message_by_message(phases, ready, ports, adding)
    if roughly is None:
        raise ConfigurationError(
            f"On {size} ranks messages overtake each other, and {transfers:,} transfers are too many to follow one "
            f"by one; {MOST_FOLLOWED:,} would do. Simulate fewer ranks, or an algorithm of fewer messages."
        )
    roughly()
    return round_by_round(phases, ready, ports, adding, in_order_of_rounds=True)


def port_bytes(schedule: Schedule, network: Network, size: int, elements: int, itemsize: int = 4) -> IntArray:
    """Count the bytes that pass each port of a network while a schedule runs.

    Args:
        schedule: the rounds as a function of the number of ranks.
        network: the network that has the ports.
        size: the number of ranks.
        elements: the length of each rank's buffer.
        itemsize: bytes per element.

    Returns:
        (ports,) bytes, by the number that `Ports` gives each port.
    """
    ports = network.for_ranks(size)
    total = np.zeros(ports.count)
    ways: dict[tuple[bytes, bytes], list[Hop]] = {}
    for messages in messages_of(Phase(schedule, elements, itemsize=itemsize), size, adding=False):
        key = messages.source.tobytes(), messages.target.tobytes()
        if key not in ways:
            ways[key] = ports.way(messages.source, messages.target)
        for hop in ways[key]:
            nbytes = messages.nbytes if hop.rows is None else messages.nbytes[hop.rows]
            total += np.bincount(hop.port, nbytes, minlength=ports.count)
    return total.astype(np.int64)
