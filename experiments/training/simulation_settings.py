"""The options of an experiment in simulated time. Nothing here imports torch, so that --help is quick."""

from dataclasses import dataclass
from typing import Any, ClassVar

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import RANKS, Name, Text
from bigbatch.comm.options import Options, option, options_of

NETWORK = "ethernet-10g"
"""The network that is simulated by default."""

CORE, MEASURED = "core", "measured"
"""What simulated workers can compute on besides GPUs: a laptop's core, or this machine, as measured."""


def networks() -> list[str]:
    """Lists the names of networks that can be simulated: the presets, and this machine's."""
    from bigbatch.comm.simulation.presets import NETWORKS, THIS_MACHINE

    return [*NETWORKS, THIS_MACHINE]


class Straggling(Text):
    """The kind of value that says what slows simulated workers, such as "lognormal:0.2,slow:3:2"."""

    def __init__(self) -> None:
        super().__init__("WORDS")

    def read(self, value: Any) -> str:
        """Returns the words, after looking whether they can be understood."""
        words = super().read(value)
        if words != "none":  # the default, for which nobody must wait for NumPy
            from bigbatch.comm.simulation.computing import stragglers_named

            try:
                stragglers_named(words)
            except ConfigurationError as error:
                raise ValueError(f"cannot be understood: {str(error).rstrip('.')}") from None
        return words


def gpus() -> list[str]:
    """Lists the names of what a simulated worker can compute on: a core, this machine, and the known GPUs."""
    from bigbatch.comm.simulation.gpus import GPUS

    return [CORE, MEASURED, *GPUS]


@dataclass(frozen=True)
class SimulationSettings(Options):
    """The options for simulated time: the cluster that the experiment runs on, if it is simulated.

    Attributes:
        simulate: number of simulated workers; None for real processes.
        network: name of a preset, or FILE.toml; None for `NETWORK`.
        straggler: what slows workers, in the words of `bigbatch.comm.simulation.computing.stragglers_named`; None if
            nothing does.
        gpu: what a worker computes on: `core`, `measured` (this machine, now) or a GPU's name; None for `CORE`.

    Raises:
        ConfigurationError: other options of a simulation are given without the number of workers.
    """

    title: ClassVar[str] = "Simulated time"

    simulate: int | None = option(
        None,
        RANKS,
        "Number of workers to simulate, all in this process and in simulated time.",
        missing="real processes",
    )
    network: str | None = option(
        None, Name(networks, "FILE.toml"), "Network whose messages are simulated.", missing=NETWORK
    )
    straggler: str | None = option(
        None,
        Straggling(),
        "What slows simulated workers: exponential:0.3, lognormal:0.3, slow:RANK:FACTOR or fail:RANK:SECONDS; several "
        "are joined by commas.",
        missing="none",
    )
    gpu: str | None = option(None, Name(gpus), "What a simulated worker computes on.", missing=CORE)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.simulate is None:
            for one in options_of(type(self))[1:]:
                if getattr(self, one.name) is not None:
                    raise ConfigurationError(
                        f"{one.flag} says what is simulated: add --simulate WORKERS, or leave it out."
                    )
