"""Replay of all messages of a round at once, in NumPy.

It is right as long as every port serves its messages in the order of the rounds. Where a rank that is early overtakes
one that is late, and that holds the late one up, it raises `Overtaking`.
"""

from collections.abc import Sequence

import numpy as np

from bigbatch.comm.schedules.schedule import BoolArray, IntArray
from bigbatch.comm.simulation.network import FloatArray, Ports
from bigbatch.comm.simulation.phases import Messages, Phase, messages_of


class Overtaking(Exception):  # noqa: N818 - it says what was found, and `replay` catches it
    """Raised when a message of a later round reaches a port before one of an earlier round, and holds it up."""


class Turns:
    """Splits things that happen at several places into turns: first the first of each place, then the second ...

    Args:
        place: (things,) where each happens, in the order in which they do.
        repeats: how many times the same list of places occurs in `place`, one after the other.

    Attributes:
        turns: the rows of `place` that belong to each turn; no two of one turn happen at the same place.
    """

    def __init__(self, place: IntArray, repeats: int = 1) -> None:
        length = len(place) // repeats
        if not length or int(np.bincount(place[:length]).max()) == 1:
            self.turns: list[slice | IntArray] = [slice(k * length, (k + 1) * length) for k in range(repeats)]
            return
        order = np.argsort(place, kind="stable")
        there = place[order]
        begins = np.flatnonzero(np.concatenate(([True], there[1:] != there[:-1])))
        number = np.arange(len(place)) - np.repeat(begins, np.diff(begins, append=len(place)))
        by_number = order[np.argsort(number, kind="stable")]
        self.turns = [*np.split(by_number, np.cumsum(np.bincount(number))[:-1])]


class Wiring:
    """What all messages between the same sources and targets have in common, worked out once.

    Args:
        ports: the ports of the network.
        messages: some messages between these sources and targets.

    Attributes:
        hops: the ports that the messages pass.
        hop_turns: for each hop, the turns in which its ports serve the messages.
        sends: the turns in which ranks send.
        receives: the turns in which ranks receive.
    """

    def __init__(self, ports: Ports, messages: Messages) -> None:
        source, target, repeats = messages.source, messages.target, messages.repeats
        self.hops = ports.way(source, target)
        self.hop_turns = [Turns(hop.port, repeats if hop.rows is None else 1) for hop in self.hops]
        self.sends, self.receives = Turns(source, repeats), Turns(target, repeats)


class PortClocks:
    """The time at which each port is free again.

    Args:
        count: the number of ports.
        in_order_of_rounds: whether to serve the messages of a round after all those of the rounds before, in whatever
            order they come.
    """

    def __init__(self, count: int, *, in_order_of_rounds: bool = False) -> None:
        self._in_order_of_rounds = in_order_of_rounds
        self._free = np.zeros(count)
        self._idle = np.zeros(count)  # from then until the last message came
        self._last = np.full(count, -np.inf)
        self._last_source = np.full(count, -1)

    def serve(
        self, port: IntArray, source: IntArray, turns: Turns, head: FloatArray, hold: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        """Serve each message at its port, first come, first served.

        Of those that come at the same time, the one from the lowest rank is served first.

        Args:
            port: (messages,) the number of the port of each.
            source: (messages,) the rank that each comes from.
            turns: the turns of the ports, if the messages of each port come in their order.
            head: (messages,) the second at which each comes to its port.
            hold: (messages,) the seconds for which each holds it.

        Returns:
            (begin, end): (messages,) the seconds between which each holds its port.

        Raises:
            Overtaking: a message that was served before has come after one of these.
        """
        if len(turns.turns) == 1:
            return self._serve_once(port, source, head, hold)
        before = [state.copy() for state in (self._free, self._idle, self._last, self._last_source)]
        try:
            return self._serve(port, source, turns.turns, head, hold)
        except Overtaking:
            self._free, self._idle, self._last, self._last_source = before
            order = np.lexsort((source, head, port))
            return self._serve(port, source, [order[turn] for turn in Turns(port[order]).turns], head, hold)

    def _serve(
        self,
        port: IntArray,
        source: IntArray,
        turns: Sequence[slice | IntArray],
        head: FloatArray,
        hold: FloatArray,
    ) -> tuple[FloatArray, FloatArray]:
        begin, end = np.empty_like(head), np.empty_like(head)
        for rows in turns:
            begin[rows], end[rows] = self._serve_once(port[rows], source[rows], head[rows], hold[rows])
        return begin, end

    def _serve_once(
        self, port: IntArray, source: IntArray, head: FloatArray, hold: FloatArray
    ) -> tuple[FloatArray, FloatArray]:
        free, last = self._free[port], self._last[port]
        if not self._in_order_of_rounds and (head <= last).any():
            late = (head < last) | ((head == last) & (source < self._last_source[port]))
            if late.any():
                return self._serve_late(port, source, head, hold, late)
        begin = np.maximum(head, free)
        end = begin + hold
        self._idle[port] = free
        self._free[port] = end
        self._last[port] = head
        self._last_source[port] = source
        return begin, end

    def _serve_late(
        self, port: IntArray, source: IntArray, head: FloatArray, hold: FloatArray, late: BoolArray
    ) -> tuple[FloatArray, FloatArray]:
        """Serve late messages in the time before the last one, if their ports were idle for long enough then."""
        fits = (head >= self._idle[port]) & (head + hold <= self._last[port])
        if (late & ~fits).any():
            raise Overtaking
        begin, end = np.empty_like(head), np.empty_like(head)
        begin[late], end[late] = head[late], head[late] + hold[late]
        self._idle[port[late]] = end[late]
        others = ~late
        begin[others], end[others] = self._serve_once(port[others], source[others], head[others], hold[others])
        return begin, end


def round_by_round(
    phases: Sequence[Phase],
    ready: FloatArray,
    ports: Ports,
    adding: FloatArray,
    *,
    in_order_of_rounds: bool = False,
) -> FloatArray:
    """When each rank has finished each phase, computed for all messages of a round at once.

    Args:
        phases: the schedules.
        ready: (phases, ranks) the seconds before which each rank does not start each phase.
        ports: the ports of the network.
        adding: (ranks,) the seconds that each takes to add, round or widen a byte.
        in_order_of_rounds: whether to serve messages in the order of the rounds, as if none could overtake another.

    Returns:
        (phases, ranks) seconds.

    Raises:
        Overtaking: messages would have to be served in another order than that of the rounds.
    """
    clocks = PortClocks(ports.count, in_order_of_rounds=in_order_of_rounds)
    wirings: dict[tuple[bytes, bytes], Wiring] = {}
    now = since = np.zeros(ports.size)
    ends = []
    for phase, gate in zip(phases, ready, strict=True):
        since = now if phase.restart else since
        now = np.maximum(now, since + gate)
        for messages in messages_of(phase, ports.size, adding=bool(adding.any())):
            key = messages.source.tobytes(), messages.target.tobytes()
            if key not in wirings:
                wirings[key] = Wiring(ports, messages)
            now = _round(messages, wirings[key], clocks, ports, now, adding)
        ends.append(now)
    return np.stack(ends)


def _round(
    messages: Messages, wiring: Wiring, clocks: PortClocks, ports: Ports, now: FloatArray, adding: FloatArray
) -> FloatArray:
    """The second at which each rank is through with a round that it enters at the second in `now`; both (ranks,)."""
    source, target = messages.source, messages.target
    latency, occupancy = ports.costs(source, target, messages.nbytes)
    after, ready = now.copy(), now[source]
    if messages.rounding.any():  # one message after the other
        cost = messages.rounding * adding[source]
        for rows in wiring.sends.turns:
            at = source[rows]
            after[at] += cost[rows]
            ready[rows] = after[at]
    first, *others = wiring.hops
    begin, left = clocks.serve(first.port, source, wiring.hop_turns[0], ready, occupancy * first.share)
    head, tail = begin + latency, left + latency
    for hop, turns in zip(others, wiring.hop_turns[1:], strict=True):
        if hop.rows is None:
            head, end = clocks.serve(hop.port, source, turns, head, occupancy * hop.share)
            tail = np.maximum(tail, end)
        else:
            at = hop.rows
            head[at], end = clocks.serve(hop.port, source[at], turns, head[at], occupancy[at] * hop.share)
            tail[at] = np.maximum(tail[at], end)
    if messages.sends_first.any():
        waits = np.zeros(ports.size, np.bool_)
        waits[target[messages.sends_first]] = True
        early = waits[source]
        np.maximum.at(after, source[early], left[early])
    cost = messages.adding * adding[target]
    for rows in wiring.receives.turns:
        at = target[rows]
        after[at] = np.maximum(after[at], tail[rows]) + cost[rows]
    for rows in wiring.sends.turns:
        at = source[rows]
        after[at] = np.maximum(after[at], left[rows])
    return after
