"""What a calibrated network predicts for more ranks than it was measured with."""

from dataclasses import fields, replace

import numpy as np

from bigbatch.comm.buffers import phantom
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.schedules.schedule import IntArray, Schedule, chunk_bounds, chunk_count, rounds_of
from bigbatch.comm.server.report import Report
from bigbatch.comm.simulation.network import Network
from bigbatch.comm.simulation.replay import replay
from bigbatch.comm.strategies.service import GRADIENT_TAG, REPORT_TAG, REQUEST_TAG, VALUE_TAG
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.wires.request import ANY
from bigbatch.comm.wires.transport import Transport

# More ranks than cores.


def on_cores(network: Network, ranks: int, cores: int) -> Network:
    """The network of this machine when `ranks` of them run on its cores.

    On one machine a port is a core: it copies what its ranks send and what they receive. So ranks that share a core
    share its ports, as ranks of a node share a NIC: a node is a core, with ⌈ranks/cores⌉ ranks. A core adds for one
    rank at a time, so that γ, of ranks that all add at the same time, is as many times as large.

    Everything follows from what two ranks on two cores measured and from the number of cores. Limits: ranks stay on
    their core, while an operating system moves them about, so that three ranks on two cores are taken for as slow as
    four; that ranks have to wait until their core is given to them, and what that does to its caches, is left out;
    neighbours in rank share a core, which matters where a rank talks to some of them only. With at most as many ranks
    as cores nothing changes.

    Args:
        network: the network of this machine, calibrated with a core for each rank.
        ranks: the number of ranks.
        cores: the number of cores that they share.

    Raises:
        ConfigurationError: there are no ranks or no cores.
    """
    if ranks < 1 or cores < 1:
        raise ConfigurationError(f"{ranks} ranks cannot run on {cores} cores; both must be at least 1.")
    sharing = -(-ranks // cores)
    return replace(network, node_size=sharing, nics=1, inside=None, gamma=network.gamma * sharing)


def added_bytes(schedule: Schedule, size: int, nbytes: int) -> IntArray:
    """(ranks,) how many bytes each rank adds in a schedule over buffers of `nbytes`."""
    rounds = rounds_of(schedule, size)
    bounds = chunk_bounds(nbytes, chunk_count(rounds))
    total = np.zeros(size, np.int64)
    for round_ in rounds:
        np.add.at(total, round_.target, np.where(round_.reduce, bounds[round_.stop] - bounds[round_.first], 0))
    return total


def predict_reduction(schedule: Schedule, network: Network, ranks: int, cores: int, nbytes: int) -> float:
    """Seconds that an all-reduce of float32 over ranks of this machine takes.

    A replay of its schedule with ports that are cores, and then what the core that adds most has to add: the core that
    would add a packet while the next one arrives is the one which has to copy that, so that the two take turns. In the
    replay itself they would go on side by side, as NICs allow.
    """
    moving = replace(on_cores(network, ranks, cores), gamma=0.0)
    sharing = moving.node_size
    added = np.add.reduceat(added_bytes(schedule, ranks, nbytes), np.arange(0, ranks, sharing))
    return float(replay(schedule, moving, ranks, max(1, nbytes // 4)).max() + network.gamma * added.max())


STREAMS = 3
"""An addition reads two arrays and writes one; other work on arrays takes γ for as many as that."""


def predict_server(network: Network, workers: int, cores: int, nbytes: int) -> float:
    """Seconds of a synchronous update of float32 parameters by workers of this machine through one server.

    What `bigbatch.comm.measuring.served.Served` sends, on a cluster in simulated time. That itself would not do
    there: its server computes with torch, which takes no simulated time. So its work on arrays is charged here: it
    adds what the second and further workers bring, and divides the sum and assigns it, which reads and writes an
    array each; every worker reads its gradient through once, to see whether it is finite. With γ ≤ β and a core for
    each rank, 2α + 2Wnβ + (W - 1 + 4/3)nγ for W workers: all gradients are sent before the first request is heard,
    so that adding hides behind none of them, as it does behind none where the server has to take a large message
    from MPI itself.
    """
    # While the server adds, nobody else does.
    here = replace(on_cores(network, workers + 1, cores), gamma=network.gamma)
    stream = here.gamma * nbytes / STREAMS

    def update(wires: Transport) -> float:
        request, report = np.zeros(4), np.zeros(len(fields(Report)))
        values, landing = phantom(max(1, nbytes // 4)), phantom(max(1, nbytes // 4))
        if wires.rank < workers:
            sending = [wires.isend(values, workers, GRADIENT_TAG)]
            wires.spend(stream)
            sending.append(wires.isend(request, workers, REQUEST_TAG))
            wires.irecv(report, workers, REPORT_TAG).wait()
            wires.irecv(values, workers, VALUE_TAG).wait()
        else:
            for number in range(workers):
                worker = wires.irecv(request, ANY, REQUEST_TAG).wait()
                wires.irecv(landing, worker, GRADIENT_TAG).wait()
                if number:
                    wires.add(values, landing)
            wires.spend(4 * stream)
            sending = [wires.isend(report, worker, REPORT_TAG) for worker in range(workers)]
            sending += [wires.isend(values, worker, VALUE_TAG) for worker in range(workers)]
        for leaving in sending:
            leaving.wait()
        return wires.now()

    return max(Cluster(workers + 1, network=here).run(update)[:workers])
