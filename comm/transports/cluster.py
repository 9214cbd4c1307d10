"""A cluster in one process: every rank is a greenlet, and all of them live in simulated time.

The same `work(transport)` that mpirun would start runs here once per rank, unchanged, with real values. There is one
clock, and the event that comes first happens first. Computing takes the time that is spent on it (`spend`), messages
take what the network says, and everything repeats itself exactly.

On a free network messages meet like those of the strictest MPI: a send is done only when its receive has been posted,
so that a program which relies on buffering is found out, as a deadlock. On any other network a send is done when the
message has left the sender's port.
"""

import random
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TypeVar

from bigbatch.comm.errors import CommunicationError, ConfigurationError
from bigbatch.comm.kinds import RANKS, Number, checked
from bigbatch.comm.simulation.computing import MOMENT, by_rank
from bigbatch.comm.simulation.network import FREE, Network
from bigbatch.comm.transports.simulated.fabric import Fabric
from bigbatch.comm.transports.simulated.messages import LateReceive
from bigbatch.comm.transports.simulated.transport import ClusterTransport
from bigbatch.comm.wires import DEFAULT_DEADLINE
from bigbatch.comm.wires.transport import Transport, consecutive_nodes, work_on

Result = TypeVar("Result")

SIMULATED_SECONDS = Number(above=0, most=MOMENT.most)
"""The kind of value for a deadline in simulated time, in seconds."""


class Cluster:
    """Runs all ranks of a job in one process, in simulated time.

    Args:
        size: the number of ranks.
        nodes: the ranks of each node; if empty, the network's nodes, or on a free network one node for all.
        network: what messages cost.
        failures: rank -> the simulated second at which it stops for ever.
        deadline: simulated seconds after which a wait for a rank that has failed gives up.
        late: on a free network, has every message be read a random while after its sender and its receiver have met. A
            program that changes a buffer before its send is over then sends something else.

    Attributes:
        network: what messages cost.
        fabric: what the ranks share: the clock, the ports, the mailboxes, and who counts messages.
        transports: every rank's end of the wires, by rank.

    Raises:
        ConfigurationError: what is no number of ranks, no deadline, or a failure of a rank that does not exist.
    """

    def __init__(
        self,
        size: int,
        nodes: Sequence[Sequence[int]] = (),
        network: Network = FREE,
        failures: Mapping[int, float] | None = None,
        deadline: float = DEFAULT_DEADLINE,
        *,
        late: bool = False,
    ) -> None:
        size = checked("The number of ranks of a cluster", RANKS, size)
        deadline = checked("The deadline", SIMULATED_SECONDS, deadline)
        self.network = network
        self._failures = by_rank("failures", failures or {}, MOMENT)
        for rank in self._failures:
            if not 0 <= rank < size:
                raise ConfigurationError(f"Rank {rank} is to fail, but the ranks are 0 to {size - 1}.")
        self.fabric = Fabric(network, size)
        if late:
            self.fabric.receive = partial(LateReceive, random.Random(size).random)
        self.transports = [ClusterTransport(self.fabric, rank, size) for rank in range(size)]
        if not nodes and not network.free:
            nodes = consecutive_nodes(size, network.node_size)
        layout = tuple(tuple(node) for node in nodes)
        for transport in self.transports:
            transport.nodes = layout or transport.nodes
            transport.deadline = deadline

    @property
    def now(self) -> float:
        """Simulated seconds since the cluster was made."""
        return self.fabric.clock.now

    def run(self, work: Callable[[Transport], Result]) -> list[Result]:
        """Call `work(transport)` once per rank and return what each returned, by rank.

        Raises:
            DeadlockError: no rank can go on; says who waits for whom, and what each did last.
            DeadlineError: a rank has waited in vain for one that had failed.
            CommunicationError: a rank has failed, and the others did without it.
            Exception: the first that any rank raises; the other ranks are ended.
        """
        self.fabric.forget()
        for transport in self.transports:
            transport.asked_once = 0
        results: dict[int, Result] = {}

        def body(transport: Transport) -> None:
            work_on(transport)
            results[transport.rank] = work(transport)

        clock = self.fabric.clock
        clock.run([partial(body, transport) for transport in self.transports], self._failures)
        for rank, second in clock.failed.items():
            if rank not in results:
                raise CommunicationError(f"Rank {rank} failed after {second:g} s of simulated time, at work.")
        return [results[rank] for rank in range(len(self.transports))]
