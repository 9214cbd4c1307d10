"""Rows of simulated updates: answers a request for a simulation, one strategy and one number of workers at a time."""

from collections.abc import Callable, Sequence
from typing import Any

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.simulation.computing import Stragglers, stragglers_named
from bigbatch.comm.simulation.network import Network
from bigbatch.comm.simulation.presets import network_named
from bigbatch.experiments.planning.settings import ClusterSettings, SimulationRequest
from bigbatch.experiments.planning.simulate import bare_row, simulate_row, simulating, strategy_named
from bigbatch.experiments.planning.updates import Row
from bigbatch.experiments.planning.workload import Workload
from bigbatch.experiments.training.simulated import computing_on
from bigbatch.models.sizes import ModelSize, model_named, model_of

SEQUENCES = 8
"""Number of sequences of the model's context length that a worker computes in an update by default."""

MODEL = "gpt2-small"
"""The model that is simulated by default."""


def network_of(cluster: ClusterSettings) -> Network:
    """Loads the network between the workers, with the nodes that the settings ask for.

    Raises:
        ConfigurationError: the name is unknown, or the file is not valid.
    """
    network = network_named(cluster.network)
    return network if cluster.node_size is None else network.with_nodes(cluster.node_size)


def workload_of(request: SimulationRequest) -> tuple[ModelSize, Workload]:
    """Makes the size of the model and the workload of every worker that a request asks for.

    Raises:
        ConfigurationError: two models are named, the model is unknown, or there are more micro-batches than tokens.
    """
    if request.parameters is None:
        if request.flops_per_token is not None:
            raise ConfigurationError("--flops-per-token goes with --parameters; a --model has its own.")
        size = model_named(request.model or MODEL)
    elif request.model is not None:
        raise ConfigurationError("--model and --parameters both say how large the model is: leave one of them out.")
    else:
        size = model_of(request.parameters, request.flops_per_token)
    cluster = request.cluster
    computing = computing_on(cluster.gpu, size.flops_per_token, cluster.utilisation)
    tokens = request.tokens or SEQUENCES * (size.context or 1024)
    return size, Workload(size, tokens, computing, cluster.bucket_size, cluster.overlap, request.accumulate)


def stragglers_of(request: SimulationRequest) -> Stragglers:
    """Reads what slows workers from the words of a request.

    Raises:
        ConfigurationError: the words are not understood, or name a rank that does not exist.
    """
    stragglers = stragglers_named(request.straggler)
    stragglers.check_ranks(min(request.workers))
    return stragglers


def update_rows(strategies: Sequence[str], request: SimulationRequest, tell: Callable[[str], None]) -> list[Row]:
    """Simulates updates with every strategy and number of workers, and makes a row for each.

    Args:
        strategies: names of the strategies.
        request: what is simulated.
        tell: called with a line that names the row that is simulated next.

    Raises:
        ConfigurationError: there is no such strategy, or it cannot be simulated; or as `workload_of`.
    """
    network, (_, load), stragglers = network_of(request.cluster), workload_of(request), stragglers_of(request)
    for name in strategies:  # all names are looked up before anything takes long
        with simulating(name, min(request.workers)):
            strategy_named(name, request.servers, min(request.workers))
    rows = []
    for name in strategies:
        for count in request.workers:
            tell(f"{name}, {count:,} workers ...")
            with simulating(name, count):
                row = simulate_row(name, network, count, load, stragglers, servers=request.servers, seed=request.seed)
            rows.append(row)
    return rows


def sum_rows(strategies: Sequence[str], request: SimulationRequest) -> list[dict[str, Any]]:
    """Simulates one sum of `request.bytes` bytes with every strategy and number of workers, and makes a row for each.

    Raises:
        ConfigurationError: there is no such strategy, or it does more than one sum.
    """
    assert request.bytes is not None, "whoever asks has seen that a size is given"
    network = network_of(request.cluster)
    rows = []
    for name in strategies:
        for count in request.workers:
            with simulating(name, count):
                rows.append(bare_row(name, network, count, request.bytes, servers=request.servers))
    return rows
