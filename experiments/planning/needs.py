"""What a training needs: memory on a GPU, and updates to reach a loss, as far as they are known."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Self

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.precisions import BYTES
from bigbatch.comm.schema import check
from bigbatch.comm.simulation.gpus import GPU
from bigbatch.experiments.planning.tradeoff import Tradeoff, kaplan
from bigbatch.experiments.runs.records import FitSummary, FittedModel
from bigbatch.experiments.runs.run import SUMMARY, read_summary
from bigbatch.models.sizes import ModelSize, own_size

STATE_BYTES = 16
"""Bytes per parameter with Adam, in every precision.

In bf16 and fp16: 2 for the value and 2 for the gradient that are computed with, and 12 in the optimiser, for the value
in float32 and two moments. Rajbhandari et al., "ZeRO: memory optimizations toward training trillion parameter models"
(2020), section 3.1. In fp32: 4 for the value, 4 for the gradient and 8 for the two moments.
"""

LAYER_NUMBERS, LAYER_MASKS, OUTPUT_NUMBERS, LOGIT_BYTES = 16, 2, 2, 4
"""What a token leaves for backward: for each unit of width in each layer 16 numbers, if attention scores are computed
anew, and 2 bytes of masks, of the two dropouts; in the output 2 numbers for each unit of width, and for each word of
the vocabulary 4 bytes, because the loss is computed in float32 in every precision.

Korthikanti et al., "Reducing activation recomputation in large Transformer models" (2022), sections 4.1 and 4.3, who
count numbers of 2 bytes, and so 34 bytes in a layer and 4 in the output; with flash attention scores are never stored
either.
"""


def memory_bytes(size: ModelSize, micro_batch: int, precision: str) -> int:
    """Estimates the bytes that training takes on a GPU: the model's state, and the activations kept for backward.

    If blocks are computed once more, forward keeps only the input of each, and backward has what one of them leaves.

    Args:
        size: the size of the model; every worker holds the whole model.
        micro_batch: number of sequences of `context` tokens that are computed at once.
        precision: the precision that they are computed in.
    """
    number = BYTES[precision]
    layer = LAYER_NUMBERS * number + LAYER_MASKS
    token = size.width * (size.layers * number + layer if size.recomputed else size.layers * layer)
    token += size.width * OUTPUT_NUMBERS * number + size.vocabulary * LOGIT_BYTES
    return size.parameters * STATE_BYTES + micro_batch * size.context * token


def fitting(size: ModelSize, micro_batches: Sequence[int], gpu: GPU | None, precision: str) -> tuple[int, ...]:
    """Picks the micro-batches that fit into the GPU's memory; all of them if no GPU is given.

    Args:
        size: the size of the model.
        micro_batches: numbers of sequences that are computed at once.
        gpu: the GPU.
        precision: the precision that they are computed in.

    Raises:
        ConfigurationError: no micro-batch fits.
    """
    if gpu is None:
        return tuple(micro_batches)
    fit = tuple(number for number in micro_batches if memory_bytes(size, number, precision) <= gpu.memory_bytes)
    if not fit:
        least = min(micro_batches)
        raise ConfigurationError(
            f"{size.name} does not fit a worker: at a micro-batch of {least} in {precision} it takes about "
            f"{memory_bytes(size, least, precision) / 1e9:,.0f} GB, and {gpu.name} has "
            f"{gpu.memory_bytes / 1e9:,.0f} GB; take a larger --gpu, a smaller --micro-batch or a smaller --model."
        )
    return fit


# How many updates it takes.


@dataclass(frozen=True)
class Known:
    """What is known about the number of updates that it takes to reach a loss.

    Attributes:
        tradeoff: the number of updates by batch size.
        source: where the numbers come from, in words.
        target: the loss, in nats per token; None if it is not known.
    """

    tradeoff: Tradeoff
    source: str
    target: float | None

    def as_json(self) -> dict[str, Any]:
        """Converts the numbers to types that JSON can write."""
        return {
            "least_updates": self.tradeoff.least_updates,
            "critical_batch": self.tradeoff.critical_batch,
            "source": self.source,
            "target": self.target,
        }


def known_from(
    size: ModelSize,
    target: float | None,
    critical_batch: float | None,
    least_updates: float | None,
    folder: Path | None,
) -> Known:
    """Finds how many updates a loss takes: from the given numbers, else from measurements, else from published ones.

    Args:
        size: the size of the model.
        target: the loss to reach, in nats per token.
        critical_batch: B_c as given by the user, in tokens; together with `least_updates` or not at all.
        least_updates: S_min as given by the user.
        folder: a folder of fitted measurements, whose summary has a "fit".

    Raises:
        ConfigurationError: one number of the pair is missing, there are two sources or none, the fit cannot be read or
            is for another target, or the target cannot be reached.
    """
    if (critical_batch is None) != (least_updates is None):
        raise ConfigurationError("--critical-batch and --least-updates belong together: give both, or neither.")
    if critical_batch is not None and least_updates is not None:
        if folder is not None:
            raise ConfigurationError(
                "--fit and --critical-batch with --least-updates both say how many updates it takes: leave one out."
            )
        return Known(Tradeoff(least_updates, critical_batch), "as given", target)
    if folder is not None:
        return _fitted(size, folder, target)
    if target is None:
        raise ConfigurationError(
            "Nothing says how many updates it takes: give a --target loss, or --fit with a folder of measurements, or "
            "--critical-batch and --least-updates."
        )
    source = "Kaplan et al. (2020), who trained on WebText2 with Adam; elsewhere a rule of thumb"
    return Known(kaplan(size, target), source, target)


@dataclass(frozen=True)
class Measured:
    """A trade-off that was fitted to measurements, as read from a folder.

    Attributes:
        tradeoff: the fitted trade-off.
        target: the loss, in nats per token; None if the folder does not say.
        untold: why the critical batch cannot be told from the measurements; None if it can.
        size: the size of the model that was measured; None if the folder does not say.
    """

    tradeoff: Tradeoff
    target: float | None
    untold: str | None
    size: ModelSize | None

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Reads the fit in a folder's summary.

        Raises:
            ConfigurationError: the folder has no summary, or the summary no fit.
        """
        if not (folder / SUMMARY).exists():
            raise ConfigurationError(
                f"--fit {folder} has no {SUMMARY} that can be read: name the folder of a measured one."
            )
        summary = read_summary(folder)
        if "fit" not in summary:
            raise ConfigurationError(
                f"{folder / SUMMARY} has no fit of least_updates and critical_batch; --fit takes the folder of a "
                "measured one."
            )
        fit = check(summary, FitSummary, f"The summary of {folder}")["fit"]
        sizes = fit.get("model")
        return cls(
            Tradeoff(float(fit["least_updates"]), float(fit["critical_batch"])),
            fit.get("target"),
            fit.get("untold"),
            None if sizes is None else size_of(sizes),
        )


SIZES = ("vocabulary", "context", "layers", "width")
"""The sizes of our own decoder, from which all others follow."""


def size_of(model: FittedModel) -> ModelSize:
    """The size of the model that a fit is about: as the fit has it, or that of our own decoder."""
    sizes: Mapping[str, Any] = model
    if all(one.name in sizes for one in fields(ModelSize)):
        return ModelSize(**{**sizes, "parts": tuple(model["parts"])})
    return own_size(*(sizes[name] for name in SIZES))


def _fitted(size: ModelSize, folder: Path, target: float | None) -> Known:
    """What was fitted to measurements, perhaps of another model."""
    measured = Measured.read(folder)
    fitted_target = measured.target
    if target is not None and fitted_target is not None and not math.isclose(target, fitted_target, rel_tol=1e-6):
        raise ConfigurationError(
            f"The fit in {folder} is of a loss of {fitted_target:g}, and --target is {target:g}: leave --target out."
        )
    untold = f"; but it says: {measured.untold}" if measured.untold else ""
    other = ""
    if measured.size is not None and measured.size != size:
        other = (
            f", of another model, with {measured.size.parameters:,} parameters and {measured.size.vocabulary:,} "
            f"different tokens: nobody has measured whether {size.name} takes as many updates"
        )
    return Known(
        measured.tradeoff,
        f"fitted to the measurements in {folder}{other}{untold}",
        target if fitted_target is None else fitted_target,
    )
