"""Rows of simulated updates: what a request for a simulation asks, strategy after strategy and size after size."""

from collections.abc import Callable, Sequence
from typing import Any

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.simulation.computing import Stragglers, stragglers_named
from bigbatch.comm.simulation.network import Network
from bigbatch.comm.simulation.presets import network_named
from bigbatch.experiments.planning.settings import ClusterSettings, SimulationRequest
from bigbatch.experiments.planning.simulate import bare_row, simulate_row, strategy_named
from bigbatch.experiments.planning.updates import Row
from bigbatch.experiments.planning.workload import Workload
from bigbatch.experiments.training.simulated import computing_on
from bigbatch.models.sizes import ModelSize, model_named, model_of

SEQUENCES = 8
"""Of the model's context length, that a worker computes in an update if nothing else is said."""

MODEL = "gpt2-small"
"""The model that is simulated if none is named."""


def network_of(cluster: ClusterSettings) -> Network:
    """The network between the workers.

    Raises:
        ConfigurationError: an unknown name, or a bad file.
    """
    network = network_named(cluster.network)
    return network if cluster.node_size is None else network.with_nodes(cluster.node_size)


def workload_of(request: SimulationRequest) -> tuple[ModelSize, Workload]:
    """The model, and what every worker does in an update.

    Raises:
        ConfigurationError: two models, an unknown one, or more micro-batches than tokens.
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
    """What slows workers.

    Raises:
        ConfigurationError: words that say nothing, or a rank that does not exist.
    """
    stragglers = stragglers_named(request.straggler)
    stragglers.check_ranks(min(request.workers))
    return stragglers


def update_rows(strategies: Sequence[str], request: SimulationRequest, tell: Callable[[str], None]) -> list[Row]:
    """A row of updates for every strategy and number of workers.

    Args:
        strategies: their names.
        request: what is simulated.
        tell: is told which row comes next.

    Raises:
        ConfigurationError: no such strategy, or one that cannot be simulated; or as `workload_of`.
    """
    network, (_, load), stragglers = network_of(request.cluster), workload_of(request), stragglers_of(request)
    for name in strategies:  # all names are looked up before anything takes long
        strategy_named(name, request.servers, min(request.workers))
    rows = []
    for name in strategies:
        for count in request.workers:
            tell(f"{name}, {count:,} workers ...")
            rows.append(
                simulate_row(name, network, count, load, stragglers, servers=request.servers, seed=request.seed)
            )
    return rows


def sum_rows(strategies: Sequence[str], request: SimulationRequest) -> list[dict[str, Any]]:
    """A row of one sum of `request.bytes` for every strategy and number of workers.

    Raises:
        ConfigurationError: no such strategy, or one that is more than a sum.
    """
    assert request.bytes is not None, "whoever asks has seen that a size is given"
    network = network_of(request.cluster)
    return [
        bare_row(name, network, count, request.bytes, servers=request.servers)
        for name in strategies
        for count in request.workers
    ]
