"""The options of the commands `simulate` and `plan`."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.kinds import (
    BYTES,
    RANKS,
    SEED,
    TOKENS,
    UPDATES,
    Count,
    File,
    Flag,
    Kind,
    Name,
    Number,
    Several,
    Text,
    Whole,
)
from bigbatch.comm.options import Options, option, options_of
from bigbatch.comm.precisions import BYTES as PRECISIONS
from bigbatch.comm.precisions import FP32
from bigbatch.comm.simulation import UTILISATION
from bigbatch.experiments.training.simulation_settings import NETWORK, Straggling, gpus, networks

MOST_AT_ONCE = 4096
"""Largest number of sequences at once, and of micro-batches in an update."""

_UNITS = {"": 1, "k": 1_000, "M": 10**6, "G": 10**9, "B": 10**9}

PARAMETERS = Count("parameters", _UNITS, "1300000000, 1.3e9 or 1.3G", "NUMBER", most=10**13)
OPERATIONS = Count("operations", _UNITS, "7800000000, 7.8e9 or 7.8G", "NUMBER", most=10**15)


class Counts(Kind):
    """The kind of value that lists numbers: 8..64 doubles from 8 to 64; 3,4,6 is a list; in Python, a sequence.

    Args:
        things: what is counted, for error messages.
        most: the largest number that is allowed.
    """

    metavar = "COUNTS"

    def __init__(self, things: str, most: int) -> None:
        self._things = things
        self._limits = Whole(most=most)

    def read(self, value: Any) -> tuple[int, ...]:
        """Reads the numbers: "8..64,96" -> (8, 16, 32, 64, 96)."""
        if isinstance(value, str):
            parts: Sequence[Any] = value.split(",")
        else:
            parts = (
                value
                if isinstance(value, Sequence) and not isinstance(value, bytes | bytearray | memoryview)
                else [value]
            )
        if not parts:
            raise ValueError(f"names no number of {self._things}")
        found: set[int] = set()
        for word in parts:
            first, dots, last = word.partition("..") if isinstance(word, str) else (word, "", word)
            try:
                count, most = map(self._limits.read, (first, last if dots else first))
            except ValueError:
                count, most = 1, 0
            if most < count:
                raise ValueError(
                    f"holds {quoted(word)}, which is no number of {self._things}; write 64, or 8..4096, which doubles "
                    f"from 8; at least 1 and at most {self._limits.most:,}"
                )
            while count <= most:
                found.add(count)
                count *= 2
        return tuple(sorted(found))

    def write(self, value: Any) -> str:
        """Writes the numbers as a list with commas: (8, 96) -> "8,96"."""
        return ",".join(map(str, value))

    def show(self, value: Any) -> str:
        """Shows the numbers in help texts: as a range if each is twice the one before, else as a list."""
        doubling = all(after == 2 * before for before, after in pairwise(value))
        return f"{value[0]}..{value[-1]}" if doubling and len(value) > 2 else self.write(value)


def published_models() -> list[str]:
    """Lists the names of published models whose sizes are known."""
    from bigbatch.models.sizes import PUBLISHED

    return list(PUBLISHED)


@dataclass(frozen=True)
class ClusterSettings(Options):
    """The options for the simulated cluster: its network, its nodes, and what workers compute on.

    Attributes:
        network: name of a preset, or FILE.toml.
        node_size: number of ranks that share a node; None for the network's own number.
        gpu: name of the GPU that a worker computes on.
        utilisation: the share of its peak operations per second that a GPU reaches.
        precision: the precision that it computes in; None for bf16 or fp16, whichever the GPU has, and fp32 on a core.
        recompute: whether backward computes each block again instead of keeping its activations.
        bucket_size: target size of a gradient bucket, in bytes of float32.
        overlap: whether buckets are sent while backward still runs.
        wire: the precision in which gradients are sent, and parameters by servers.
    """

    title: ClassVar[str] = "Cluster"

    network: str = option(NETWORK, Name(networks, "FILE.toml"), "Network between the workers.")
    node_size: int | None = option(None, RANKS, "Number of ranks that share a node.", missing="as the network says")
    gpu: str = option("a100", Name(gpus), "What a worker computes on.")
    utilisation: float = option(
        UTILISATION, Number(least=1e-6, most=1), "Share of its peak operations a second that a GPU reaches."
    )
    precision: str | None = option(
        None,
        Name(lambda: PRECISIONS),
        "Precision that a worker computes in; a GPU's peak depends on it.",
        missing="bf16, or fp16 on a GPU without it; fp32 on a core",
    )
    recompute: bool = option(
        False, Flag(), "Compute each block again in backward instead of keeping its activations, as in a training."
    )
    bucket_size: int = option(25 * 2**20, BYTES, "Target size of a gradient bucket, in float32.")
    overlap: bool = option(True, Flag(), "Send gradient buckets while backward still runs.")
    wire: str = option(
        FP32,
        Name(lambda: PRECISIONS),
        "Precision in which gradients are sent, and parameters by servers; bf16 and fp16 take half the bytes.",
    )


@dataclass(frozen=True)
class SimulationRequest(Options):
    """The options of `simulate`: the updates, or the one sum, that are timed.

    Attributes:
        workers: numbers of workers, each of which is simulated.
        cluster: the simulated cluster.
        model: name of a published model; None for `gpt2-small`, or for the model that `parameters` describes.
        parameters: number of trained parameters, instead of a model.
        flops_per_token: floating-point operations of a token, forward and backward, with `parameters`.
        tokens: number of tokens that a worker computes in an update, or None for 8 sequences.
        accumulate: number of micro-batches in which a worker computes these tokens.
        straggler: what slows workers, in words.
        servers: number of servers, for strategies that have any.
        seed: seed for the random factors that slow workers.
        bytes: the size of one sum of float32 numbers, instead of whole updates.

    Raises:
        ConfigurationError: one sum is asked for, and something about updates too.
    """

    title: ClassVar[str] = "Work"

    workers: tuple[int, ...] = option(
        (8, 16, 32, 64, 128, 256), Counts("workers", RANKS.most), "Numbers of workers: 64, 8..4096 or a list."
    )
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    model: str | None = option(None, Name(published_models), "Model that is trained.", missing="gpt2-small")
    parameters: int | None = option(
        None, PARAMETERS, "Number of parameters, instead of --model.", missing="the model's"
    )
    flops_per_token: int | None = option(
        None, OPERATIONS, "Operations of a token, forward and backward, with --parameters.", missing="6 a parameter"
    )
    tokens: int | None = option(None, TOKENS, "Tokens that a worker computes in an update.", missing="8 sequences")
    accumulate: int = option(1, UPDATES, "Micro-batches in which a worker computes these tokens.")
    straggler: str = option(
        "none", Straggling(), "What slows workers: exponential:0.3, lognormal:0.3 or slow:RANK:FACTOR."
    )
    servers: int = option(1, RANKS, "Number of servers, for strategies that have any.")
    seed: int = option(0, SEED, "Seed for the random factors that slow workers.")
    bytes: int | None = option(
        None, BYTES, "Size of one sum to time, in float32, instead of updates.", missing="whole updates"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        of_updates = (
            "model",
            "parameters",
            "flops_per_token",
            "tokens",
            "accumulate",
            "straggler",
            "precision",
            "recompute",
        )
        values = self.flat()
        for one in options_of(type(self)):
            if self.bytes is not None and one.name in of_updates and values[one.name] != one.default:
                raise ConfigurationError(
                    f"{one.flag} is about updates of a model, but --bytes asks for one sum: leave one of them out."
                )


@dataclass(frozen=True)
class PlanRequest(Options):
    """The options of `plan`: the loss to reach, and the combinations that are considered.

    Attributes:
        workers: numbers of workers to consider.
        strategies: names of the strategies to consider.
        servers: numbers of servers to consider, for strategies that have any.
        model: name of a published model; None for the model of `fit`, else `gpt2-small`.
        target: the loss to reach, in nats per token.
        critical_batch: the critical batch in tokens, if it is known; together with `least_updates`.
        least_updates: the number of updates with an endless batch, if it is known; together with `critical_batch`.
        fit: a folder in which these two were fitted to measurements.
        micro_batch: numbers of sequences to consider that a worker computes at once.
        accumulate: numbers of micro-batches to consider that a worker adds up for an update.
        price: price of a GPU-hour, in any currency.
        cluster: the simulated cluster.
    """

    title: ClassVar[str] = "Plan"

    workers: tuple[int, ...] = option(
        (8, 16, 32, 64, 128, 256, 512), Counts("workers", RANKS.most), "Numbers of workers: 64, 8..4096 or a list."
    )
    strategies: tuple[str, ...] = option(
        ("ring", "halving-doubling", "ps"), Several(Text("NAME")), "Strategies to look at; FILE.py:Name is one too."
    )
    servers: tuple[int, ...] = option(
        (8,), Counts("servers", RANKS.most), "Numbers of servers, for strategies that have any."
    )
    model: str | None = option(
        None, Name(published_models), "Model that is trained.", missing="the model of --fit, else gpt2-small"
    )
    target: float | None = option(
        None, Number(above=0), "Loss to reach, in nats per token.", missing="that of --fit, if any"
    )
    critical_batch: int | None = option(
        None, TOKENS, "Critical batch in tokens, if it is known; with --least-updates.", missing="an estimate"
    )
    least_updates: float | None = option(
        None,
        Number(least=1, most=1e12),
        "Updates with an endless batch, if known; with --critical-batch.",
        missing="an estimate",
    )
    fit: Path | None = option(
        None, File(), "Folder of a figure in which these two were fitted to measurements.", missing="none"
    )
    micro_batch: tuple[int, ...] = option(
        (1, 2, 4, 8, 16), Counts("sequences", MOST_AT_ONCE), "Numbers of sequences that a worker computes at once."
    )
    accumulate: tuple[int, ...] = option(
        (1, 2, 4, 8, 16, 32, 64),
        Counts("micro-batches", MOST_AT_ONCE),
        "Numbers of micro-batches that a worker adds up for one update.",
    )
    price: float | None = option(
        None, Number(above=0, most=1e9), "Price of a GPU-hour, for costs in money.", missing="costs in GPU-hours alone"
    )
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
