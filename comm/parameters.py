"""A model's parameters and gradients, each in one flat buffer that the wires can send slices of."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import accumulate

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from bigbatch.comm.buffers import Buffer, array_dtype, array_of, phantom
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.gradients import GradientViews
from bigbatch.comm.module import WholeModule
from bigbatch.comm.values import ValueViews

TRAINED_DTYPES = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
"""The dtypes that parameters may have."""

OptimizerFactory = Callable[[list[tuple[str, nn.Parameter]]], Optimizer]
"""Makes an optimiser for named parameters. Whoever owns the update, a worker or a server, calls it."""


@dataclass(frozen=True)
class WholeFactory:
    """An `OptimizerFactory` of optimisers that look at whole tensors, or at all gradients at once.

    On a part of the parameters they would compute something else; other optimisers treat every element by itself.

    Attributes:
        what: the name of what looks at the whole, for messages, such as "lamb".
        make: the factory that makes the optimiser.
    """

    what: str
    make: OptimizerFactory

    def __call__(self, named: list[tuple[str, nn.Parameter]]) -> Optimizer:
        """Makes an optimiser for all parameters."""
        return self.make(named)


def optimizer_for(make: OptimizerFactory, named: list[tuple[str, nn.Parameter]]) -> Optimizer:
    """Makes the optimiser of named parameters, and sees to it that it holds no others.

    Raises:
        ConfigurationError: it holds others: whatever they are, they get no gradients from here.
    """
    made = make(named)
    own = {parameter for _, parameter in named}
    others = [p for group in made.param_groups for p in group["params"] if p not in own]
    if others:
        raise ConfigurationError(
            f"The optimiser {type(made).__name__} holds {len(others)} parameters that it was not given, the first of "
            f"shape {list(others[0].shape)}; they would not be trained. Make it of the parameters that it is called "
            "with, and put all parameters into the model.",
            everywhere=True,
        )
    return made


def refuse_parts(optimizer: OptimizerFactory, parts: int) -> None:
    """Refuse to give parts of the parameters to an optimiser that must see the whole.

    Args:
        optimizer: makes the optimisers.
        parts: how many servers share the parameters.

    Raises:
        ConfigurationError: the optimiser must see the whole and there are several parts; marked `everywhere`, for every
            rank finds the same.
    """
    if parts > 1 and isinstance(optimizer, WholeFactory):
        raise ConfigurationError(
            f"{optimizer.what} looks at the whole of a tensor or gradient, but each of {parts} servers would hold only "
            "a part of it. Use one server (--servers 1, without --colocated), or an all-reduce.",
            everywhere=True,
        )


@dataclass(frozen=True)
class Bucket:
    """A slice of the flat gradients that a strategy sends as one unit.

    Attributes:
        index: its place in the order in which backward finishes the buckets.
        gradients: (elements,) a view of the flat gradients.
        parameters: the parameters whose gradients it holds.
    """

    index: int
    gradients: Tensor
    parameters: tuple[nn.Parameter, ...]


@dataclass(frozen=True)
class Piece:
    """A parameter, or a part of one, in a slice of the flat buffers.

    Attributes:
        name: the parameter's name.
        shape: the parameter's shape; for a part of it, a shape with as many dimensions.
        first: the element of the slice at which it begins ...
        stop: ... and one past its end.
    """

    name: str
    shape: tuple[int, ...]
    first: int
    stop: int


class FlatParameters:
    """Moves the trainable parameters of a module into two flat buffers: values and gradients.

    Every parameter becomes a view of `values`, and its `.grad` a view of `gradients`, so that backward writes
    where the wires read and nothing is copied in between. The parameters lie in the reverse order of their
    registration, which is about the order in which backward finishes them.

    Args:
        module: any module; parameters that do not require a gradient stay where they are.

    Attributes:
        module: all that the module holds.
        names: the parameters' names, in the buffers' order.
        values: (elements,) the values of all parameters.
        value_views: the parameters' parts of the values, and whether the values are there.
        views: the parameters' parts of the gradients, and what torch has done to them.

    Raises:
        ConfigurationError: the module has nothing to train, its parameters differ in dtype or device, or their dtype
            cannot be trained.
    """

    def __init__(self, module: nn.Module) -> None:
        self.module = WholeModule(module)
        named = self.module.trained[::-1]
        self._named = named
        self._places = {parameter: place for place, (_, parameter) in enumerate(named)}
        self.names = [name for name, _ in named]
        first = named[0][1]
        if first.dtype not in TRAINED_DTYPES:
            known = ", ".join(_plain(dtype) for dtype in TRAINED_DTYPES)
            raise ConfigurationError(
                f"Parameter {self.names[0]} is {_plain(first.dtype)}, but only {known} can be trained: convert the "
                "model first."
            )
        for name, parameter in named:
            if (parameter.dtype, parameter.device) != (first.dtype, first.device):
                raise ConfigurationError(
                    f"Parameter {name} is {parameter.dtype} on {parameter.device}, but {self.names[0]} is "
                    f"{first.dtype} on {first.device}; one flat buffer holds one dtype on one device. Convert the "
                    "model first."
                )
        *self._starts, elements = accumulate((parameter.numel() for _, parameter in named), initial=0)
        self.values = torch.empty(elements, dtype=first.dtype, device=first.device)
        self.value_views = ValueViews(named, self.values, self._starts)
        self.place_gradients(torch.zeros_like(self.values))

    @property
    def gradients(self) -> Tensor:
        """(elements,) all gradients, summed over tokens; empty once they were dropped."""
        return self.views.memory

    def place_gradients(self, memory: Tensor) -> None:
        """Moves the gradients into `memory`, (elements,), whose contents they take on; buckets must be cut anew."""
        self.views = GradientViews(self._named, memory, self._starts)

    def complete(self, bucket: Bucket) -> None:
        """Ends the adding up of a bucket's gradients, before it is pushed; see `GradientViews.complete`."""
        self.views.complete([self._places[parameter] for parameter in bucket.parameters])

    def sent(self, bucket: Bucket) -> None:
        """Notes that a bucket was pushed, so that nobody may change its gradients any more."""
        self.views.sent([self._places[parameter] for parameter in bucket.parameters])

    def check(self) -> None:
        """Sees to it that what the module trains is what the flat buffers hold; called before each update.

        Values that were moved elsewhere are brought back into the flat buffer.

        What cannot be put right is a fault, which `refuse` tells.
        """
        if change := self.module.change():
            self.views.found(change)
        self.views.find_late()
        if lost := self.value_views.restore():
            self.views.found(lost)

    def refuse(self) -> None:
        """Raises an error if what torch wrote is not what would be trained.

        Raises:
            ConfigurationError: names the parameter, and says what to do.
        """
        if self.views.fault:
            raise ConfigurationError(self.views.fault)

    def drop_gradients(self) -> None:
        """Removes all gradients, because their memory is given back."""
        self.views.detach()
        self.views = GradientViews([], self.values.new_empty(0), [])

    def named_parameters(self) -> list[tuple[str, nn.Parameter]]:
        """(name, parameter) pairs in the module's own order, as optimisers take them."""
        return self._named[::-1]

    @property
    def signature(self) -> list[tuple[str, str]]:
        """(name, "shape dtype") of every parameter: what ranks must agree on before they add gradients."""
        return [(name, described(parameter)) for name, parameter in self.named_parameters()]

    @property
    def nbytes(self) -> int:
        """Bytes of all gradients together; the values have as many."""
        return self.gradients.numel() * self.gradients.element_size()

    def pieces(self, first: int, stop: int) -> list[Piece]:
        """The parameters, or parts of them, in the elements from `first` up to `stop` of the flat buffers.

        A part of a parameter keeps its number of dimensions, which some optimisers look at: (1, ..., 1, elements).
        """
        found = []
        for (name, parameter), start in zip(self._named, self._starts, strict=True):
            begin, end = max(first, start), min(stop, start + parameter.numel())
            if begin < end:
                whole = end - begin == parameter.numel()
                shape = tuple(parameter.shape) if whole else (*(1,) * (parameter.dim() - 1), end - begin)
                found.append(Piece(name, shape, begin - first, end - first))
        return found[::-1]

    def buckets(self, bucket_bytes: int) -> list[Bucket]:
        """Cut the gradients into buckets of whole parameters, each of at least `bucket_bytes` but the last."""
        buckets: list[Bucket] = []
        held: list[nn.Parameter] = []
        first = 0
        for (_, parameter), start in zip(self._named, self._starts, strict=True):
            held.append(parameter)
            stop = start + parameter.numel()
            last = stop == len(self.gradients)
            if stop == start and held:
                held.pop()  # it has no elements, and so is in nobody's bucket
                continue
            if last or (stop - first) * parameter.element_size() >= bucket_bytes:
                buckets.append(Bucket(len(buckets), self.gradients[first:stop], tuple(held)))
                first, held = stop, []
        return buckets

    def digests(self) -> list[int]:
        """Returns a number of 40 bits for each parameter, in the buffers' order, that almost surely tells its values.

        It takes a pass over all values; see `looks_at`. A tensor without contents has no digest.
        """
        if self.values.is_meta:
            return []
        ends = [*self._starts[1:], len(self.values)]
        return [digest(self.values[first:stop]) for first, stop in zip(self._starts, ends, strict=True)]

    def writes(self) -> list[int]:
        """How often each parameter was written to by way of the parameter itself, in the buffers' order."""
        return [parameter._version for _, parameter in self._named]

    @contextmanager
    def kept(self) -> Iterator[None]:
        """Puts the values back when the context ends, so that they can be changed within it for a look."""
        own = self.values.clone()
        try:
            yield
        finally:
            self.values.copy_(own)


ROW = 4093
"""Words of 64 bits in a row when a tensor's are added up for its digest: a prime, since shapes are not."""

GOLDEN = 0x9E37_79B9_7F4A_7C15 - 2**64
"""2^64 over the golden ratio, as a signed word: its multiples are far apart."""


def digest(tensor: Tensor) -> int:
    """A number of 40 bits that almost surely tells a tensor's values and their order; 0 for one without elements.

    Its bits are laid out in rows of words, and the sums of the rows and columns are numbered and mixed.
    """
    if tensor.is_meta or not len(own := tensor.resolve_conj().resolve_neg().reshape(-1).view(torch.uint8)):
        return 0
    if own.storage_offset() % 8:
        own = own.clone()  # torch cuts memory into words at multiples of their size only
    end = len(own) // 8 * 8
    words = own[:end].view(torch.int64)
    whole = len(words) // ROW * ROW
    rows = words[:whole].view(-1, ROW)
    sums = torch.cat([rows.sum(0), rows.sum(1), words[whole:], own[end:].long()])
    return int(_mixed(sums + GOLDEN * torch.arange(1, 1 + len(sums), device=sums.device)).sum()) % 2**40


def _mixed(words: Tensor) -> Tensor:
    """Words of 64 bits, each of which depends on all bits of the word that was in its place (splitmix64).

    Source: Steele, Lea and Flood, "Fast splittable pseudorandom number generators" (2014).
    """
    for shift, factor in ((30, 0xBF58_476D_1CE4_E5B9), (27, 0x94D0_49BB_1331_11EB)):
        words = _folded(words, shift) * (factor - 2**64)
    return _folded(words, 31)


def _folded(words: Tensor, shift: int) -> Tensor:
    brought_down: Tensor = words >> shift & 2 ** (64 - shift) - 1
    return words ^ brought_down


def looks_at(updates: int) -> bool:
    """Whether what takes a pass over all values is done after so many updates: 0, 1, 2, 4, 8 and so on.

    So it costs next to nothing in a long training, and a fault that lasts is found all the same.
    """
    return updates & (updates - 1) == 0


def described(tensor: Tensor) -> str:
    """Says a tensor's shape and dtype, as in "[4, 3] float32"."""
    return f"{list(tensor.shape)} {_plain(tensor.dtype)}"


def _plain(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def square(tensor: Tensor) -> Tensor:
    """The sum of the squares of a tensor's elements, (), in its dtype, or in float32 if that is half precision.

    It takes one pass, without a copy if the tensor is contiguous and not in half precision.

    It stays on the tensor's device, so that nobody waits for a GPU.
    """
    elements = tensor.reshape(-1)
    if tensor.element_size() < 4:  # a sum of many squares is beyond the digits or the range of half precision
        elements = elements.float()
    return torch.dot(elements, elements)


def total(numbers: list[Tensor]) -> float:
    """Adds up tensors of a single element each, in double precision; waits for a GPU once."""
    return sum(torch.stack(numbers).tolist()) if numbers else 0.0


def all_finite(tensor: Tensor) -> bool:
    """Whether a tensor, (elements,) and not empty, has no NaN and no infinity; True for one without contents.

    One pass, ten times quicker than a norm; unlike a sum it cannot overflow, and a NaN anywhere comes out as NaN.
    """
    return tensor.is_meta or all(map(math.isfinite, map(float, torch.aminmax(tensor))))


def phantom_like(tensor: Tensor) -> Buffer:
    """Makes a phantom, (elements,), with a tensor's length and dtype."""
    return phantom(tensor.numel(), array_dtype(tensor.dtype))


class OnHost:
    """A tensor as the wires see it: a NumPy array on the host.

    For a tensor on the host this is a view and nothing moves. One on a GPU is staged through a twin on the host:
    `fetch` fills the twin before it is sent, `deliver` empties it after it was received. One on torch's device "meta",
    which has a size and no contents, is a phantom.

    Args:
        tensor: (elements,) flat and contiguous.

    Attributes:
        array: (elements,) the tensor's twin on the host, or a view of the tensor if it lies there.
    """

    def __init__(self, tensor: Tensor) -> None:
        self._tensor = tensor.detach()
        here = tensor.device.type in ("cpu", "meta")
        self._twin = self._tensor if here else torch.empty_like(tensor, device="cpu")
        self.array: Buffer = phantom_like(tensor) if tensor.is_meta else array_of(self._twin)

    def fetch(self) -> Buffer:
        """Copies the tensor's present values to the host, unless they are there, and returns the array."""
        if self._twin is not self._tensor:
            self._twin.copy_(self._tensor)
        return self.array

    def part(self, first: int, stop: int) -> Tensor:
        """Returns a copy, on the host, of the present values from element `first` up to `stop`."""
        self.fetch()
        return self._twin[first:stop].clone()

    def deliver(self) -> None:
        """Copies the array's values into the tensor, unless they share memory."""
        if self._twin is not self._tensor:
            self._tensor.copy_(self._twin)
