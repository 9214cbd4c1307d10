"""What a user can ask of the simulator and of the planner."""

from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.options import (
    BYTES,
    TOKENS,
    Count,
    File,
    Flag,
    Kind,
    Name,
    Number,
    Options,
    Several,
    Text,
    Whole,
    option,
    options_of,
)
from bigbatch.comm.simulation import UTILISATION
from bigbatch.experiments.training.settings import NETWORK, gpus, networks

MOST_WORKERS = 1 << 20

MOST_AT_ONCE = 4096
"""Sequences at once, and micro-batches in an update."""

NUMBER = Count("units", {"": 1, "k": 1_000, "M": 10**6, "G": 10**9, "B": 10**9}, "1300000000, 1.3e9 or 1.3G", "NUMBER")


class Counts(Kind):
    """Numbers of something: 8..64 doubles from 8 to 64; 3,4,6 lists them; in Python a sequence of numbers.

    Args:
        things: what is counted.
        most: the largest that is taken.
    """

    metavar = "COUNTS"

    def __init__(self, things: str, most: int) -> None:
        self._things = things
        self._most = most

    def read(self, value: Any) -> tuple[int, ...]:
        """The numbers, as in "8..64,96" -> (8, 16, 32, 64, 96)."""
        words = [str(part) for part in value] if isinstance(value, list | tuple | range) else str(value).split(",")
        found: set[int] = set()
        for word in words:
            first, dots, last = word.strip().partition("..")
            count, most = (int(end) if end.isdecimal() else 0 for end in (first, last if dots else first))
            if not 1 <= count <= most <= self._most:
                raise ValueError(
                    f"holds {word!r}, which is no number of {self._things}; write 64, or 8..4096, which doubles from "
                    f"8; at least 1 and at most {self._most:,}"
                )
            while count <= most:
                found.add(count)
                count *= 2
        return tuple(sorted(found))

    def write(self, value: Any) -> str:
        """As a list with commas."""
        return ",".join(map(str, value))

    def show(self, value: Any) -> str:
        """As a range, if each number is twice the one before."""
        doubling = all(after == 2 * before for before, after in pairwise(value))
        return f"{value[0]}..{value[-1]}" if doubling and len(value) > 2 else self.write(value)


def published_models() -> list[str]:
    """The names of published models."""
    from bigbatch.models.sizes import PUBLISHED

    return list(PUBLISHED)


@dataclass(frozen=True)
class ClusterSettings(Options):
    """The cluster that is simulated.

    Attributes:
        network: a preset's name, or FILE.toml.
        node_size: ranks that share a node, or None as the network says.
        gpu: what a worker computes on.
        utilisation: the share of its operations a second that a GPU reaches.
        bucket_size: bytes of gradients that are sent as one.
        overlap: whether buckets are sent while backward still runs.
    """

    title: ClassVar[str] = "Cluster"

    network: str = option(NETWORK, Name(networks, "FILE.toml"), "Network between the workers.")
    node_size: int | None = option(None, Whole(), "Number of ranks that share a node.", missing="as the network says")
    gpu: str = option("a100", Name(gpus), "What a worker computes on.")
    utilisation: float = option(
        UTILISATION, Number(above=0, most=1), "Share of its peak operations a second that a GPU reaches."
    )
    bucket_size: int = option(25 * 2**20, BYTES, "Target size of a gradient bucket.")
    overlap: bool = option(True, Flag(), "Send gradient buckets while backward still runs.")


@dataclass(frozen=True)
class SimulationRequest(Options):
    """What `simulate` times.

    Attributes:
        workers: how many, each number in turn.
        cluster: what they are.
        model: a published model, or None for `gpt2-small` or for what `parameters` says.
        parameters: how many are trained, instead of a model.
        flops_per_token: floating-point operations of a token, with `parameters`.
        tokens: that a worker computes in an update, or None for 8 sequences.
        accumulate: micro-batches that these tokens come in.
        straggler: what slows workers.
        servers: of parameter servers.
        seed: seed for the random factors that slow workers.
        bytes: the size of one sum, instead of whole updates.

    Raises:
        ConfigurationError: one sum is asked for, and something about updates too.
    """

    title: ClassVar[str] = "Work"

    workers: tuple[int, ...] = option(
        (8, 16, 32, 64, 128, 256), Counts("workers", MOST_WORKERS), "Numbers of workers: 64, 8..4096 or a list."
    )
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    model: str | None = option(None, Name(published_models), "Model that is trained.", missing="gpt2-small")
    parameters: int | None = option(None, NUMBER, "Number of parameters, instead of --model.", missing="the model's")
    flops_per_token: int | None = option(
        None, NUMBER, "Operations of a token, forward and backward, with --parameters.", missing="6 a parameter"
    )
    tokens: int | None = option(None, TOKENS, "Tokens that a worker computes in an update.", missing="8 sequences")
    accumulate: int = option(1, Whole(), "Micro-batches in which a worker computes these tokens.")
    straggler: str = option(
        "none", Text("WORDS"), "What slows workers: exponential:0.3, lognormal:0.3 or slow:RANK:FACTOR."
    )
    servers: int = option(1, Whole(), "Number of servers, for strategies that have any.")
    seed: int = option(0, Whole(least=0), "Seed for the random factors that slow workers.")
    bytes: int | None = option(None, BYTES, "Size of one sum to time, instead of updates.", missing="whole updates")

    def __post_init__(self) -> None:
        super().__post_init__()
        of_updates = ("model", "parameters", "flops_per_token", "tokens", "accumulate", "straggler")
        for one in options_of(type(self)):
            if self.bytes is not None and one.name in of_updates and getattr(self, one.name) != one.default:
                raise ConfigurationError(
                    f"{one.flag} is about updates of a model, but --bytes asks for one sum: leave one of them out."
                )


@dataclass(frozen=True)
class PlanRequest(Options):
    """What `plan` looks for.

    Attributes:
        workers: how many, each number in turn.
        strategies: their names.
        servers: of parameter servers, each number in turn.
        model: a published model, or None for the one of `fit`, else `gpt2-small`.
        target: the loss to reach, in nats a token.
        critical_batch: tokens, if known; with `least_updates`.
        least_updates: if known; with `critical_batch`.
        fit: a folder in which the two were fitted to measurements.
        micro_batch: sequences that a worker computes at once, each number in turn.
        accumulate: micro-batches that a worker adds up for an update, each number in turn.
        price: of a GPU-hour.
        cluster: what the workers are.
    """

    title: ClassVar[str] = "Plan"

    workers: tuple[int, ...] = option(
        (8, 16, 32, 64, 128, 256, 512), Counts("workers", MOST_WORKERS), "Numbers of workers: 64, 8..4096 or a list."
    )
    strategies: tuple[str, ...] = option(
        ("ring", "halving-doubling", "ps"), Several(Text("NAME")), "Strategies to look at; FILE.py:Name is one too."
    )
    servers: tuple[int, ...] = option(
        (8,), Counts("servers", MOST_WORKERS), "Numbers of servers, for strategies that have any."
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
        None, Number(above=0), "Updates with an endless batch, if known; with --critical-batch.", missing="an estimate"
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
        None, Number(above=0), "Price of a GPU-hour, for costs in money.", missing="costs in GPU-hours alone"
    )
    cluster: ClusterSettings = field(default_factory=ClusterSettings)
