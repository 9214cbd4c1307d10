"""Precision: what a model computes in, and what its weights are kept in. Torch is imported only when it computes."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

from bigbatch.comm.precisions import BF16, FP16, FP32

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Precision:
    """What a training computes in. Held-out examples are always computed in the precision of the weights.

    Attributes:
        computes: the precision of matrix products and what else can do with less, forward and backward, while norms,
            softmax and losses are computed in the weights' precision: torch's autocast, which NVIDIA Apex called O1.
        weights: the precision of the weights, their gradients and the optimiser's state.
        scaled: whether losses are multiplied by a dynamic scale; see `bigbatch.training.loss_scale`.
    """

    computes: str = FP32
    weights: str = FP32
    scaled: bool = False

    @property
    def mixed(self) -> bool:
        """Whether something is computed in less than the weights' precision."""
        return self.computes != self.weights

    @property
    def dtype(self) -> "torch.dtype":
        """The dtype of the weights."""
        return _dtype(self.weights)

    def autocast(self, device: "torch.device") -> AbstractContextManager[None]:
        """Within the context a forward pass on that device computes in this precision."""
        if not self.mixed:
            return nullcontext()
        import torch

        return torch.autocast(device.type, dtype=_dtype(self.computes))


def _dtype(precision: str) -> "torch.dtype":
    import torch

    return {FP32: torch.float32, BF16: torch.bfloat16, FP16: torch.float16}[precision]


DEFAULT_PRECISION = Precision()

PRECISIONS: Mapping[str, Precision] = MappingProxyType(
    {
        FP32: DEFAULT_PRECISION,
        BF16: Precision(BF16),
        FP16: Precision(FP16, scaled=True),
        "fp16-unscaled": Precision(FP16),
        "bf16-weights": Precision(BF16, weights=BF16),
    }
)
"""Precisions by name. The last two are there to learn from: small gradients vanish in one, and small updates in the
other."""
