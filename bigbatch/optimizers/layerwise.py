"""Optimisers that give every tensor a learning rate of its own, for large batches: LARS and LAMB.

Both look at whole tensors, so a server cannot run them on a part of a tensor; see `WholeFactory`. Biases and the scales
of norms, which have one dimension, neither decay nor get a rate of their own, as in the code that came with the papers.
"""

import inspect
from abc import abstractmethod
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

FUSED_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
"""Data types for which torch has its fused Adam on a CPU."""


def gradients_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """Collects the gradients of parameters; every one of them must have a gradient."""
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def layered(tensor: Tensor) -> bool:
    """Whether a parameter decays and gets a rate of its own: it has two dimensions or more."""
    return tensor.dim() >= 2


class Layerwise(Optimizer):
    """Base class of optimisers that update all parameters of a group at once; it is made as torch's own are."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    """Torch's method, without importing torch's compiler; see `bigbatch.optimizers.standard.lean`."""

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Makes one update from the present gradients; returns the closure's loss, if there is a closure."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            given = [parameter for parameter in group["params"] if parameter.grad is not None]
            if given:
                self._update(group, given)
        return loss

    @abstractmethod
    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        """Make one step of a group's parameters, of which each has a gradient."""

    def _kept(self, name: str, parameters: Sequence[Tensor]) -> list[Tensor]:
        """Of each parameter a tensor like it, filled with zeros at first."""
        for parameter in parameters:
            if name not in self.state[parameter]:
                self.state[parameter][name] = torch.zeros_like(parameter)
        return [self.state[parameter][name] for parameter in parameters]


class LARS(Layerwise):
    """SGD with momentum and layer-wise adaptive rate scaling (LARS).

    For every tensor w whose mean loss has the gradient g: r = c‖w‖/(‖g‖ + λ‖w‖), or 1 if either norm is 0;
    v ← μv + ηr(g + λw); w ← w - v. For vectors: v ← μv + ηg.

    Args:
        parameters: the parameters or parameter groups, as torch's own optimisers take them.
        lr: η; because c is small, values above 1 are usual.
        momentum: μ, 0.9 as in the paper.
        weight_decay: λ, 0.0005 as in the paper.
        trust: c, 0.001 as in the paper.

    Source: You, Gitman and Ginsburg, "Large batch training of convolutional networks" (2017), Algorithm 1.
    """

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        trust: float = 1e-3,
    ) -> None:
        super().__init__(parameters, {"lr": lr, "momentum": momentum, "weight_decay": weight_decay, "trust": trust})

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        rate, decay = group["lr"], group["weight_decay"]
        matrices = [parameter for parameter in parameters if layered(parameter)]
        vectors = [parameter for parameter in parameters if not layered(parameter)]
        momenta = self._kept("momentum_buffer", [*matrices, *vectors])
        torch._foreach_mul_(momenta, group["momentum"])
        if matrices:
            gradients = gradients_of(matrices)
            values, slopes = torch._foreach_norm(matrices), torch._foreach_norm(gradients)
            rates = [
                torch.where((value > 0) & (slope > 0), rate * group["trust"] * value / (slope + decay * value), rate)
                for value, slope in zip(values, slopes, strict=True)
            ]
            steps = torch._foreach_add(gradients, matrices, alpha=decay)
            torch._foreach_mul_(steps, rates)
            torch._foreach_add_(momenta[: len(matrices)], steps)
        if vectors:
            torch._foreach_add_(momenta[len(matrices) :], gradients_of(vectors), alpha=rate)
        torch._foreach_sub_([*matrices, *vectors], momenta)


class LAMB(Layerwise):
    """Adam with layer-wise rates (LAMB): the step of every tensor x has the length η‖x‖.

    For every tensor x, with Adam's bias-corrected moments m̂ and v̂: u = m̂/(√v̂ + ε) + λx;
    x ← x - η(‖x‖/‖u‖)u, where the ratio is 1 if either norm is 0. For vectors: x ← x - η·m̂/(√v̂ + ε).

    Args:
        parameters: the parameters or parameter groups, as torch's own optimisers take them.
        lr: η, the learning rate.
        betas: β₁ and β₂. By default these and λ are those of `adamw` here, so that only the layer-wise rates differ.
        eps: ε, 10⁻⁶ as in the paper.
        weight_decay: λ, which is decoupled from the moments.
        fused: whether to use torch's fused Adam; None to use it where torch supports it. The result is the same but
            for rounding.

    Source: You et al., "Large batch optimization for deep learning: training BERT in 76 minutes" (2020), Algorithm 2,
    with φ the identity.
    """

    _scratch: Tensor | None = None

    def __init__(
        self,
        parameters: Iterable[Any],
        lr: float,
        betas: tuple[float, float] = (0.9, 0.95),
        eps: float = 1e-6,
        weight_decay: float = 0.1,
        fused: bool | None = None,
    ) -> None:
        super().__init__(
            parameters, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay, "fused": fused}
        )

    def _update(self, group: dict[str, Any], parameters: list[Tensor]) -> None:
        for parameter in parameters:
            if "step" not in self.state[parameter]:
                self.state[parameter]["step"] = torch.zeros((), dtype=torch.float32)  # as the fused kernel has it
        torch._foreach_add_([self.state[parameter]["step"] for parameter in parameters], 1)
        matrices = [parameter for parameter in parameters if layered(parameter)]
        vectors = [parameter for parameter in parameters if not layered(parameter)]
        fused = all(map(self._fusible, parameters)) if group["fused"] is None else group["fused"]
        if not fused:
            self._in_passes(group, matrices, vectors)
            return
        if vectors:
            self._add_adam(group, vectors, vectors, -group["lr"])
        for parameter in matrices:
            self._in_cache(group, parameter)

    @staticmethod
    def _fusible(parameter: Tensor) -> bool:
        assert parameter.grad is not None, "only parameters with a gradient are updated"
        plain = parameter.is_contiguous() and parameter.grad.is_contiguous()
        return parameter.device.type == "cpu" and parameter.dtype in FUSED_DTYPES and plain

    def _add_adam(self, group: dict[str, Any], into: list[Tensor], parameters: list[Tensor], factor: float) -> None:
        """Update the parameters' moments, and add `factor` · m̂/(√v̂ + ε) to `into`."""
        first, second = group["betas"]
        torch._fused_adamw_(
            into,
            gradients_of(parameters),
            self._kept("exp_avg", parameters),
            self._kept("exp_avg_sq", parameters),
            [],
            [self.state[parameter]["step"] for parameter in parameters],
            lr=-factor,
            beta1=first,
            beta2=second,
            weight_decay=0.0,
            eps=group["eps"],
            amsgrad=False,
            maximize=False,
        )

    def _in_cache(self, group: dict[str, Any], parameter: Tensor) -> None:
        """One tensor's update, with u in a scratch that stays in cache if the tensor is small enough."""
        scratch = self._scratch
        if scratch is None or scratch.dtype != parameter.dtype or scratch.numel() < parameter.numel():
            scratch = self._scratch = torch.empty_like(parameter, requires_grad=False).view(-1)
        update = scratch[: parameter.numel()].view(parameter.shape)
        torch.mul(parameter, group["weight_decay"], out=update)
        self._add_adam(group, [update], [parameter], 1.0)
        below, above = map(float, torch._foreach_norm([update, parameter]))
        ratio = above / below if above > 0 and below > 0 else 1.0
        parameter.add_(update, alpha=-group["lr"] * ratio)

    def _in_passes(self, group: dict[str, Any], matrices: list[Tensor], vectors: list[Tensor]) -> None:
        """Everybody's update, one operation after the other; nothing is read back from the device."""
        parameters = [*matrices, *vectors]
        gradients = gradients_of(parameters)
        means, squares = self._kept("exp_avg", parameters), self._kept("exp_avg_sq", parameters)
        first, second = group["betas"]
        steps = [float(self.state[parameter]["step"]) for parameter in parameters]
        torch._foreach_lerp_(means, gradients, 1 - first)
        torch._foreach_mul_(squares, second)
        torch._foreach_addcmul_(squares, gradients, gradients, 1 - second)
        roots = torch._foreach_sqrt(squares)
        torch._foreach_div_(roots, [(1 - second**step) ** 0.5 for step in steps])
        torch._foreach_add_(roots, group["eps"])
        updates = torch._foreach_div(means, roots)
        torch._foreach_div_(updates, [1 - first**step for step in steps])
        if matrices:
            layers = updates[: len(matrices)]
            torch._foreach_add_(layers, matrices, alpha=group["weight_decay"])
            ratios = [
                torch.where((above > 0) & (below > 0), above / below, 1.0)
                for above, below in zip(torch._foreach_norm(matrices), torch._foreach_norm(layers), strict=True)
            ]
            torch._foreach_mul_(layers, ratios)
        torch._foreach_add_(parameters, updates, alpha=-group["lr"])
