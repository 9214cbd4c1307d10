"""Gradients: one place sees to it that every gradient which torch writes lands in the flat buffer, whole, once.

Autograd adds a gradient to whatever a parameter has as its `.grad`. That is a part of the flat buffer, until somebody
removes it (`zero_grad`) or puts something else there. What can be put right exactly is put right here; what cannot is a
fault, which whoever makes the update turns into an error.

A parameter to which no gradient came is told apart from one whose gradient is zero: its part of the buffer is filled
with -0.0. A sum is -0.0 only if all that is added is, and gradients are added up from +0.0. So a part that is still
-0.0 once everybody's gradients are summed, in whatever way, got no gradient from anybody.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.values import MOVED, reshaped


class GradientViews:
    """Ties parameters to their parts of a flat buffer, in which torch adds up their gradients.

    Args:
        named: (name, parameter) pairs.
        memory: (elements,) the flat buffer.
        starts: where in the buffer each parameter's part begins, in elements.

    Attributes:
        memory: (elements,) the flat buffer.
        fault: what went wrong that cannot be put right, as whole sentences; empty as long as all is well.
    """

    def __init__(self, named: Sequence[tuple[str, nn.Parameter]], memory: Tensor, starts: Sequence[int]) -> None:
        self.memory = memory
        self.fault = ""
        self._address = memory.data_ptr()
        self._named = list(named)
        self._parts = [slice(start, start + p.numel()) for (_, p), start in zip(named, starts, strict=True)]
        # Through `.data`, every view counts by itself how often it was written to: `Tensor._version`.
        self._views = [memory[part].view(p.shape).data for (_, p), part in zip(named, self._parts, strict=True)]
        self._addresses = [view.data_ptr() for view in self._views]
        self._filled = [place for place, part in enumerate(self._parts) if part.stop > part.start]
        firsts = [self._parts[place].start for place in self._filled]
        self._firsts = torch.tensor(firsts, dtype=torch.int64, device=memory.device)
        for (_, parameter), view in zip(self._named, self._views, strict=True):
            parameter.grad = view
        self._sent: dict[int, int] = {}
        self._rest()

    def begin(self) -> None:
        """Begins an update: fills the buffer with zeros, and no parameter has a gradient."""
        self.memory.zero_()
        self._sent.clear()
        self._rest()

    def _rest(self) -> None:
        self._without = self._now = [view._version for view in self._views]

    @contextmanager
    def adding(self) -> Iterator[None]:
        """Within the context backward runs, and adds to what is in the buffer already.

        If an error ends it, it has added to some gradients and not to others, which is a fault.

        Raises:
            ConfigurationError: the buffer itself was moved, so that nothing can be sent safely, or a parameter has got
                another shape, so that torch cannot add to its gradient; on this rank alone.
        """
        if self.memory.data_ptr() != self._address:
            self.found(MOVED)
            raise ConfigurationError(MOVED)
        removed = [place for place, (_, parameter) in enumerate(self._named) if parameter.grad is None]
        self.attach()
        self._find_erased(set(removed))
        try:
            yield
        except BaseException as error:
            if changed := self._reshaped():
                self.found(changed)
                raise ConfigurationError(changed) from error
            self.found(
                f"Backward was ended by an error ({type(error).__name__}) when it had added to some gradients and not "
                "to others, so that no update can be made of them: go on from what was saved before."
            )
            raise
        self._now = [view._version for view in self._views]

    def _reshaped(self) -> str:
        """Says which parameter has another shape or dtype than its part of the buffer; mostly nothing."""
        for (name, parameter), view in zip(self._named, self._views, strict=True):
            if (parameter.dtype, parameter.shape) != (view.dtype, view.shape):
                return reshaped(name, parameter, view)
        return ""

    def attach(self) -> None:
        """Gives every parameter its part of the buffer as its gradient again, if it has none, or another."""
        for place, (_, parameter) in enumerate(self._named):
            if parameter.grad is not self._views[place] or parameter.grad.data_ptr() != self._addresses[place]:
                self._attach(place)

    def complete(self, places: Sequence[int]) -> None:
        """Ends the adding up of the parameters at these places, before their part of the buffer is sent.

        What lies elsewhere is brought into the buffer, and whatever got no gradient is filled with -0.0.
        """
        for place in places:
            view = self._views[place]
            grad = self._named[place][1].grad
            if grad is not view or grad.data_ptr() != self._addresses[place]:
                self._attach(place)
            if view._version == self._without[place]:
                self.memory[self._parts[place]].fill_(-0.0)

    def sent(self, places: Sequence[int]) -> None:
        """Notes that the parameters at these places, which are complete, have been handed over to be sent."""
        for place in places:
            self._sent[place] = self._views[place]._version

    def find_late(self) -> None:
        """Looks for gradients that were written to after they had been sent, by backward or by somebody's hook."""
        for place, version in self._sent.items():
            name, parameter = self._named[place]
            if self._views[place]._version != version or parameter.grad is not self._views[place]:
                self.found(
                    f"The gradient of {name} was changed after it had been sent, by a hook or because backward took "
                    "fewer goes to add it up before. Send gradients when backward has ended (--no-overlap, "
                    "overlap=False); or register hooks before training begins, and use checkpoint(..., "
                    "use_reentrant=False)."
                )

    def found(self, fault: str) -> None:
        """Notes a fault, unless there is one already."""
        self.fault = self.fault or fault

    def absent(self, gradients: Sequence[Tensor]) -> list[int]:
        """Finds the places of the parameters that got no gradient.

        Args:
            gradients: (elements,) each, laid out as the buffer: a parameter is absent if it is so in every one.
        """
        if self.memory.is_meta or not self._filled:
            return []
        firsts = torch.stack([gradient[self._firsts] for gradient in gradients])
        candidates = ((firsts == 0) & torch.signbit(firsts)).all(0)
        if not candidates.any():
            return []
        found = [self._filled[number] for number in candidates.nonzero().flatten().tolist()]
        return [place for place in found if all(_untouched(gradient[self._parts[place]]) for gradient in gradients)]

    @contextmanager
    def without(self, places: Sequence[int]) -> Iterator[None]:
        """Removes the gradients at these places within the context, so that an optimiser leaves the parameters alone.

        Afterwards every parameter has its part of the buffer again, whatever the optimiser did to its `.grad`.
        """
        self.attach()
        for place in places:
            self._named[place][1].grad = None
        yield
        self.attach()

    def detach(self) -> None:
        """Removes all gradients, because the buffer is given back."""
        for _, parameter in self._named:
            parameter.grad = None

    def _attach(self, place: int) -> None:
        """Gives a parameter its part again. If its gradient lies elsewhere, that is brought into the buffer."""
        parameter = self._named[place][1]
        view, grad = self._views[place], parameter.grad
        if (parameter.dtype, parameter.device) != (self.memory.dtype, self.memory.device):
            return  # a fault that is found when the parameters are looked at
        if view.data_ptr() != self._addresses[place]:  # somebody has changed the view itself, through its `.data`
            part = self.memory[self._parts[place]].view(view.shape)
            part.copy_(view)
            view.data = part
        elif grad is not None:
            with torch.no_grad():
                view.copy_(grad.to_dense() if grad.is_sparse else grad)
        parameter.grad = view

    def _find_erased(self, removed: set[int]) -> None:
        """Looks for gradients that were set to zero, or removed, within the same update.

        What the loop itself has added by a backward of its own, such as that of another model's loss, may be removed.
        What was added within `adding` may not, and the two are in one sum.

        Args:
            removed: the places of the parameters that had no gradient.
        """
        for place, (view, known) in enumerate(zip(self._views, self._now, strict=True)):
            if view._version == known or view.is_meta or (place not in removed and view.any()):
                continue
            if known == self._without[place]:
                view.zero_()
                self._without = [*self._without[:place], view._version, *self._without[place + 1 :]]
            else:
                self.found(
                    f"The gradient of {self._named[place][0]} was set to zero after backward had added to it, before "
                    "the update was made, so that micro-batches are lost: leave out zero_grad, gradients begin at zero."
                )


def _untouched(part: Tensor) -> bool:
    """Whether every element is -0.0."""
    return bool(((part == 0) & torch.signbit(part)).all())
