"""What belongs to a model besides its trained parameters: modes, buffers and the random numbers that it draws."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor, nn

from bigbatch.comm.parameters import described
from bigbatch.comm.strategies.strategy import Strategy


@contextmanager
def evaluating(model: nn.Module, random: "RandomStream") -> Iterator[None]:
    """Puts a model into evaluation mode, without gradients; afterwards every part has the mode that it had.

    Args:
        model: the model. A part of it that the user keeps in evaluation mode, such as a frozen norm, stays so.
        random: the random numbers that are drawn within the context, the same each time; it is put back, too.
    """
    modes = [(part, part.training) for part in model.modules()]
    model.eval()
    try:
        with torch.no_grad(), random.kept(), random:
            yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def unchanged(tensors: Sequence[Tensor]) -> Iterator[None]:
    """Puts the contents of tensors back when the context ends."""
    own = [tensor.detach().clone() for tensor in tensors]
    try:
        yield
    finally:
        for tensor, contents in zip(tensors, own, strict=True):
            tensor.detach().copy_(contents)


class RandomStream:
    """A stream of torch's random numbers that nobody else draws from; drawn from within its context.

    Dropout draws from torch's global generators. Within the context those stand where this stream stands; afterwards
    they are what they were, so that neither the other ranks of a process nor a look at the model disturb the stream.

    Args:
        seed: seeds of the stream: the experiment's, the worker's number, and so on.
        device: a GPU has a generator of its own.
    """

    def __init__(self, seed: Sequence[int], device: torch.device) -> None:
        self._device = device
        self._outside: list[Tensor] = []
        whole = int(np.random.SeedSequence(seed).generate_state(1, np.uint64)[0])
        self._inside = [torch.Generator(place).manual_seed(whole).get_state() for place in self._places()]

    def _places(self) -> list[torch.device]:
        return [torch.device("cpu"), *([self._device] if self._device.type == "cuda" else [])]

    def _states(self) -> list[Tensor]:
        return [torch.get_rng_state() if p.type == "cpu" else torch.cuda.get_rng_state(p) for p in self._places()]

    def _set(self, states: Sequence[Tensor]) -> None:
        for place, state in zip(self._places(), states, strict=True):
            if place.type == "cpu":
                torch.set_rng_state(state)
            else:
                torch.cuda.set_rng_state(state, place)

    def __enter__(self) -> None:
        self._outside = self._states()
        self._set(self._inside)

    def __exit__(self, *_: object) -> None:
        self._inside = self._states()
        self._set(self._outside)

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Puts the stream back to where it stood when the context ends."""
        before = self._inside
        try:
            yield
        finally:
            self._inside = before

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Returns where the stream stands."""
        return {"states": [state.clone() for state in self._inside]}

    def load_state_dict(self, state: dict[str, list[Tensor]]) -> None:
        """Goes on from what `state_dict` gave."""
        self._inside = [inside.clone() for inside in state["states"]]


class SharedBuffers:
    """Keeps the buffers of all workers' models alike, as torch's DistributedDataParallel does: they are worker 0's.

    The running means of a norm are buffers, for example, and each worker would find others from its share of the data.

    Args:
        strategy: the strategy, which is started.
        broadcast: whether to broadcast worker 0's buffers after every update. Workers that are not in step cannot, and
            keep their own.
    """

    def __init__(self, strategy: Strategy, *, broadcast: bool) -> None:
        self._strategy = strategy
        self._several = strategy.workers > 1
        self._broadcast = broadcast and self._several and strategy.in_step()
        self._layout = self._described()

    def _described(self) -> list[tuple[str, str]]:
        return [(name, described(buffer)) for name, buffer in self._strategy.parameters.module.buffers]

    def _changed(self) -> bool:
        """Whether this worker has other buffers than at the start, when all workers had the same."""
        return self._described() != self._layout

    def check(self) -> None:
        """Notes a fault if the model has other buffers than at the start; called before each update."""
        if not (self._broadcast and self._changed()):
            return
        changed = sorted({name for name, _ in set(self._described()) ^ set(self._layout)}) or ["of the model"]
        self._strategy.parameters.views.found(
            f"The buffer {changed[0]} was added, removed or got another shape after training had begun, so that the "
            "workers' buffers can no longer be kept alike: keep its shape, or let each worker have its own "
            "(--no-broadcast-buffers, broadcast_buffers=False)."
        )

    def _tensors(self) -> list[Tensor]:
        return [buffer for _, buffer in self._strategy.parameters.module.buffers]

    def share(self) -> None:
        """Gives every worker worker 0's buffers; called after each update."""
        if self._broadcast and (buffers := self._tensors()):
            self._strategy.share(buffers)

    @contextmanager
    def looking(self, *, together: bool) -> Iterator[None]:
        """Gives every worker worker 0's buffers within the context, if all look together at one model.

        Raises:
            MismatchError: on every worker, if one of them has other buffers by now than the others.
        """
        changed = self._changed()
        # A model that never had buffers is looked at without a message, so that no simulated clock moves.
        asked = together and self._several and (self._layout or changed)
        if asked and self._strategy.total(np.array([float(changed)])).any():
            self._strategy.agree("buffer", self._described())
        buffers = self._tensors()
        if not (together and self._several and buffers):
            yield
            return
        with unchanged(buffers):
            self._strategy.share(buffers)
            yield
