"""Rows of simulated updates: answers a request for a simulation, one strategy and one number of workers at a time."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.precisions import FP32
from bigbatch.comm.simulation.computing import Stragglers, stragglers_named
from bigbatch.comm.simulation.network import Network
from bigbatch.comm.simulation.presets import network_named
from bigbatch.experiments.planning.settings import ClusterSettings, SimulationRequest
from bigbatch.experiments.planning.simulate import bare_row, simulate_row, simulating, strategy_named
from bigbatch.experiments.planning.updates import Row
from bigbatch.experiments.planning.workload import Workload
from bigbatch.experiments.training.simulated import computing_on, precision_on
from bigbatch.models.sizes import ModelSize, model_named, model_of, recomputing_blocks

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


def precisions_of(cluster: ClusterSettings) -> dict[str, str]:
    """Says in which precision a cluster computes and in which it sends, for what is written down.

    Raises:
        ConfigurationError: the GPU does not compute in the precision that is asked for, or nobody knows how fast.
    """
    return {"precision": precision_on(cluster.gpu, cluster.precision), "wire": cluster.wire}


def computed_on(cluster: ClusterSettings) -> str:
    """Says what a worker computes on, for titles: "a100", or "a100 in fp32, gradients sent in bf16" if asked for."""
    computed = cluster.gpu if cluster.precision is None else f"{cluster.gpu} in {cluster.precision}"
    computed = f"{computed}, blocks computed again" if cluster.recompute else computed
    return computed if cluster.wire == FP32 else f"{computed}, gradients sent in {cluster.wire}"


def as_trained(size: ModelSize, cluster: ClusterSettings) -> ModelSize:
    """The size of a model, with what is computed once more if a cluster is asked to, and only then."""
    return recomputing_blocks(size) if cluster.recompute else replace(size, recomputed=0.0)


def workload_of(request: SimulationRequest) -> tuple[ModelSize, Workload]:
    """Makes the size of the model and the workload of every worker that a request asks for.

    Raises:
        ConfigurationError: two models are named, the model is unknown, there are more micro-batches than tokens, or as
            `precisions_of`.
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
    size = as_trained(size, cluster)
    computing = computing_on(cluster.gpu, size.flops_per_token, cluster.utilisation, cluster.precision)
    tokens = request.tokens or SEQUENCES * (size.context or 1024)
    load = Workload(
        size, tokens, computing, cluster.bucket_size, cluster.overlap, request.accumulate, wire=cluster.wire
    )
    return size, load


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
        ConfigurationError: there is no such strategy, it cannot be simulated, or it does not send gradients in that
            precision; or as `workload_of`.
    """
    network, (_, load), stragglers = network_of(request.cluster), workload_of(request), stragglers_of(request)
    for name in strategies:  # all names are looked up before anything takes long
        with simulating(name, min(request.workers)):
            strategy_named(name, request.servers, min(request.workers)).check_wire(request.cluster.wire)
    rows = []
    for name in strategies:
        for count in request.workers:
            tell(f"{name}, {count:,} workers ...")
            with simulating(name, count):
                row = simulate_row(name, network, count, load, stragglers, servers=request.servers, seed=request.seed)
            rows.append(row)
    return rows


def written(rows: Iterable[Row], cluster: ClusterSettings) -> list[dict[str, Any]]:
    """Converts rows to types that JSON can write, each with the precisions of computing and of the wires."""
    return [{**asdict(row), **precisions_of(cluster)} for row in rows]


def sum_rows(strategies: Sequence[str], request: SimulationRequest) -> list[dict[str, Any]]:
    """Simulates one sum with every strategy and number of workers, and makes a row for each.

    A row has what `bare_row` returns, and `wire`, the precision in which the sum is sent.

    Raises:
        ConfigurationError: there is no such strategy, it does more than one sum, or it does not send gradients in that
            precision.
    """
    assert request.bytes is not None, "whoever asks has seen that a size is given"
    network = network_of(request.cluster)
    rows = []
    for name in strategies:
        strategy_named(name, request.servers, min(request.workers)).check_wire(request.cluster.wire)
        for count in request.workers:
            with simulating(name, count):
                row = bare_row(name, network, count, request.bytes, servers=request.servers, wire=request.cluster.wire)
            rows.append({**row, "wire": request.cluster.wire})
    return rows
