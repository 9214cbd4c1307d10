"""Whether a lower precision pays: how long the same micro-batch takes in it and in the weights' precision, here."""

import torch

from bigbatch.experiments.training.settings import Settings
from bigbatch.experiments.training.simulated import fastest
from bigbatch.models.settings import PRESETS
from bigbatch.training.precision import PRECISIONS, Precision
from bigbatch.training.trainer import Trainer

LOSS = 1.1
"""A precision does not pay if a micro-batch takes so many times as long in it; less is within the noise."""

ROOMY = "small"
"""The preset that is offered where this machine gains from a lower precision, but only with wider matrices."""

TOKENS = 1024
"""Rows of the matrix by which that is found out."""


def remark_on(trainer: Trainer, settings: Settings) -> str:
    """Says that the precision asked for does not pay, and what would; empty if it pays.

    Every worker measures at the same time, as all of them compute at the same time while they train.

    Args:
        trainer: the trainer of a worker, which has yet to make its first update.
        settings: the settings of the experiment.
    """
    name = settings.machine.precision
    precision = PRECISIONS[name]
    if not precision.mixed or not trainer.batches.micro_batches(0, trainer.worker):
        return ""
    plain = Precision(precision.weights, precision.weights)
    trainer.warm_up(plain)  # as it is in the other one: the first time takes longer
    ratio = fastest(trainer.warm_up) / fastest(lambda: trainer.warm_up(plain))
    if ratio < LOSS:
        return ""
    found = f"A micro-batch takes {ratio:.1f} times as long in {name} as in {plain.computes} here"
    advice = f"--precision {plain.computes} is quicker"
    if not gains(precision, trainer.device):
        return f"{found}: this machine computes slowly in {precision.computes}. {advice}"
    roomier = settings.model.model in (None, *PRESETS) and settings.model.sizes().width < PRESETS[ROOMY].width
    if roomier:
        advice = f"Larger ones do: try --model {ROOMY}"
    return f"{found}: its matrices are too small to gain. {advice}"


def gains(precision: Precision, device: torch.device) -> bool:
    """Whether a product of matrices as wide as those of the preset `ROOMY` is quicker in a precision, here."""
    width = PRESETS[ROOMY].width
    left, right = torch.ones(TOKENS, width, device=device), torch.ones(width, 4 * width, device=device)

    def multiply() -> None:
        _ = (left @ right).sum().item()

    def multiply_in_precision() -> None:
        with precision.autocast(device):
            multiply()

    return fastest(multiply_in_precision) < fastest(multiply)
