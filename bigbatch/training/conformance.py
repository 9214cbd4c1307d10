"""The conformance kit for tasks and models: what the trainer relies on, checked before anything is trained.

    import bigbatch
    print(bigbatch.conform_task(task, model))  # {} if all is well, else what each check found

A trainer adds up losses and gradients over micro-batches and workers and divides once, by the number of tokens. It is
right only if losses are sums, if tokens are counted, and if a loss depends on its examples and nothing else.
"""

import copy
import json
import math
import random
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.measuring.conformance import examined
from bigbatch.comm.module import check_module
from bigbatch.models.model import Model
from bigbatch.models.settings import ModelSettings
from bigbatch.tasks.loss import PADDING
from bigbatch.tasks.task import Split, Task, wrong_facts

Findings = Iterator[str]

EXAMPLES = 8
"""Number of examples in the largest batch that is made."""

MOST_COMPARED = 512
"""Number of examples of each split that are compared with those of the other."""

RELATIVE, ABSOLUTE = 1e-4, 1e-4
"""How far sums may be apart that were made in another order, in single precision."""

SPLITS: tuple[Split, Split] = ("training", "validation")

NOT_LOOKED_AT = (
    f"batches of more than {EXAMPLES} examples, and examples beyond the first {MOST_COMPARED} of each split",
    "whether the losses are right, as far as they are sums, and whether anything is learnt",
    "GPUs, and what happens in training mode, such as dropout",
)
"""What `conform_task` does not look at, each as a phrase."""


def conform_task(task: Task, model: nn.Module) -> dict[str, str]:
    """Put a task and a model through every check.

    Args:
        task: the task, with its data.
        model: a model for it. It is examined in evaluation mode, and is as it was afterwards.

    Returns:
        What the checks found, by name, one sentence each: empty if task and model conform. `NOT_LOOKED_AT` says what
        they do not look at.

    Raises:
        ConfigurationError: the one is no task, or the other no module, such as the class of one.
    """
    check_module(model)
    if not isinstance(task, Task):
        raise ConfigurationError(f"The task must be a bigbatch.tasks.task.Task, but is {quoted(task)}.")
    return dict(found for found in examined(checks_of_task(task, model)) if found[1])


def checks_of_task(task: Task, model: nn.Module) -> dict[str, Callable[[], Findings]]:
    """The checks of `conform_task`, by name; each yields what it finds wrong."""

    def run(check: Callable[[Subject], Findings]) -> Findings:
        own = copy.deepcopy(model).eval()
        yield from check(Subject(task, own))

    return {name: partial(run, check) for name, check in CHECKS.items()}


@dataclass(frozen=True)
class Subject:
    """A task and a copy of a model in evaluation mode, which a check may change."""

    task: Task
    model: nn.Module

    def examples(self, split: Split = "training") -> NDArray[np.int64]:
        """The numbers of the first few examples of a split."""
        return np.arange(min(EXAMPLES, self.task.sizes[split]))

    def loss(self, examples: NDArray[np.int64], split: Split = "training") -> tuple[Tensor, int]:
        """The loss on some examples, and the number of tokens that it is said to be over."""
        return self.task.loss(self.model, self.task.batch(split, examples).to(torch.device("cpu")))

    def value(self, examples: NDArray[np.int64], split: Split = "training") -> tuple[float, int]:
        """As `loss`, without gradients and as a number."""
        with torch.no_grad():
            loss, tokens = self.loss(examples, split)
        return float(loss), tokens

    def gradients(self, examples: NDArray[np.int64]) -> dict[str, Tensor]:
        """The gradients of the loss on some examples, by the parameters' names; zeros where there is none."""
        self.model.zero_grad()
        self.loss(examples)[0].backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        return {
            name: torch.zeros_like(p) if p.grad is None else p.grad.clone()
            for name, p in self.model.named_parameters()
            if p.requires_grad
        }


def close(one: float, other: float) -> bool:
    """Whether two sums are equal but for rounding."""
    return math.isclose(one, other, rel_tol=RELATIVE, abs_tol=ABSOLUTE)


def says_its_sizes(subject: Subject) -> Findings:
    """Checks that the numbers that describe the task are there and make sense."""
    yield from wrong_facts(subject.task)


def returns_loss_and_tokens(subject: Subject) -> Findings:
    """Checks that a loss is one finite number with a gradient, and the number of tokens a whole one, as counted."""
    for split in SPLITS:
        places = subject.examples(split)
        batch = subject.task.batch(split, places)
        found: Any = subject.task.loss(subject.model, batch)
        if not isinstance(found, tuple) or len(found) != 2:
            yield f"loss returns a {type(found).__name__}, but must return the summed loss and its number of tokens."
            return
        loss, tokens = found
        if not isinstance(loss, Tensor) or loss.numel() != 1 or loss.dim():
            yield f"The loss on {split} examples is no tensor of a single number: {_described(loss)}."
            return
        if not loss.requires_grad:
            yield f"The loss on {split} examples has no gradient: do not detach it, and take no item of it."
        if not math.isfinite(float(loss.detach())):
            yield f"The loss on {len(places)} {split} examples is {float(loss.detach())}."
        if isinstance(tokens, bool) or not isinstance(tokens, int):
            yield f"The number of tokens is {_described(tokens)}, but must be a Python int."
            return
        most = len(places) * subject.task.context
        if not 0 < tokens <= most:
            yield f"{len(places)} {split} examples are said to have {tokens} tokens, but have 1 to {most}."
        targets = getattr(batch, "targets", None)
        if isinstance(targets, Tensor) and (counted := int((targets != PADDING).sum())) != tokens:
            yield f"{tokens} tokens are said to be in a batch that has {counted} targets which are no padding."


def _described(value: Any) -> str:
    return f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"{value!r}"


def adds_up(subject: Subject) -> Findings:
    """Checks that the loss and the tokens of a batch are the sums of those of its parts, however it is cut."""
    places = subject.examples()
    for cut in sorted({1, len(places) // 2, len(places) - 1} - {0}):
        parts = [places[:cut], places[cut:]]
        whole, tokens = subject.value(places)
        losses, counts = zip(*(subject.value(part) for part in parts if len(part)), strict=True)
        if tokens != sum(counts):
            yield f"{len(places)} examples have {tokens} tokens, but their parts {' and '.join(map(str, counts))}."
        if not close(whole, sum(losses)):
            told = f"The loss of {len(places)} examples is {whole:.6g}, but its parts have {_listed(losses)}"
            mean = sum(loss * count for loss, count in zip(losses, counts, strict=True)) / max(1, sum(counts))
            means = close(whole, mean) or close(whole, sum(losses) / len(losses))
            yield f"{told}: {'it is a mean, and must be a sum' if means else 'they do not add up'}."


def _listed(numbers: tuple[float, ...]) -> str:
    return " and ".join(f"{number:.6g}" for number in numbers)


def gradients_add_up(subject: Subject) -> Findings:
    """Checks that the gradient of a batch is the sum of the gradients of its halves, parameter by parameter."""
    places = subject.examples()
    half = len(places) // 2
    whole = subject.gradients(places)
    parts = [subject.gradients(part) for part in (places[:half], places[half:]) if len(part)]
    for name, gradient in whole.items():
        total = torch.stack([part[name] for part in parts]).sum(0)
        if not gradient.numel():
            continue
        far, largest = float((gradient - total).abs().max()), float(total.abs().max())
        if not far <= RELATIVE * largest + ABSOLUTE:
            yield f"The gradient of {name} is not the sum of those of two halves of the batch: {far:.2g} apart."


def is_repeatable(subject: Subject) -> Findings:
    """Checks that the same examples have the same loss again, whatever random numbers were drawn before."""
    places = subject.examples()
    results = []
    for seed in (1, 1, 2, 3):
        random.seed(seed)
        np.random.seed(seed)  # noqa: NPY002 - this is the state that a task must not depend on
        torch.manual_seed(seed)
        results.append(subject.value(places))
    if results[0] != results[1]:
        yield f"The same examples have the loss {results[0][0]:.6g}, and the next time {results[1][0]:.6g}."
    elif len(set(results)) > 1:
        yield (
            f"The loss depends on random numbers outside the task: it is {results[0][0]:.6g} and {results[2][0]:.6g} "
            "for the same examples in evaluation mode."
        )


def takes_any_places(subject: Subject) -> Findings:
    """Checks batches of examples in another order, of an example twice, and of examples of the last batch."""
    places = subject.examples()
    whole, tokens = subject.value(places)
    shuffled = np.random.default_rng(1).permutation(places)
    if not close(subject.value(shuffled)[0], whole) or subject.value(shuffled)[1] != tokens:
        yield f"The loss depends on the order of the examples: {whole:.6g}, shuffled {subject.value(shuffled)[0]:.6g}."
    one, other = int(places[-1]), int(places[0])
    repeated, count = subject.value(np.array([one, other, one]))
    each = [subject.value(np.array([place])) for place in (one, other, one)]
    if not close(repeated, sum(loss for loss, _ in each)) or count != sum(number for _, number in each):
        yield f"A batch of the examples {one}, {other} and {one} again has not the sum of their losses and tokens."
    for split in SPLITS:
        last = subject.task.sizes[split] - 1
        loss, number = subject.value(np.array([last]), split)
        if not math.isfinite(loss) or number < 1:
            yield f"The last {split} example, number {last}, has the loss {loss} over {number} tokens."


def takes_no_places(subject: Subject) -> Findings:
    """Checks that a batch of no examples, if it can be made, has no loss and no tokens."""
    try:
        batch = subject.task.batch("training", np.empty(0, dtype=np.int64))
        loss, tokens = subject.task.loss(subject.model, batch)
    except Exception:  # the trainer never asks for one, so that it may be refused in any way
        return
    value = float(loss.detach())
    if value != 0 or tokens != 0:
        yield f"A batch of no examples has the loss {value} over {tokens} tokens; a sum of nothing is 0."


def leaves_the_model_alone(subject: Subject) -> Findings:
    """Checks that computing a loss changes nothing about the model, above all not its gradients or modes."""
    task, model = subject.task, subject.model
    parameters = dict(model.named_parameters())
    for parameter in parameters.values():
        parameter.grad = torch.full_like(parameter, 0.5)
    held = {name: parameter.grad for name, parameter in parameters.items()}
    for training in (True, False):
        model.train(training)
        modes = {name: module.training for name, module in model.named_modules()}
        values = {name: value.clone() for name, value in model.state_dict().items()}
        needed = {name: parameter.requires_grad for name, parameter in parameters.items()}
        task.loss(model, task.batch("training", subject.examples()))
        for name, parameter in parameters.items():
            changed = parameter.grad is None or bool((parameter.grad != 0.5).any())
            if changed or parameter.grad is not held[name]:
                yield f"loss changes the gradient of {name}, as zero_grad does: gradients add up over micro-batches."
            if parameter.requires_grad != needed[name]:
                yield f"loss changes whether {name} needs a gradient."
            if not torch.equal(parameter.detach(), values[name]):
                yield f"loss changes the parameter {name}: only the optimiser may."
        buffers = [] if training else [name for name, _ in model.named_buffers() if name in values]
        for name in buffers:
            if not torch.equal(model.state_dict()[name], values[name]):
                yield f"loss changes the buffer {name} in evaluation mode."
        for name, module in model.named_modules():
            if module.training != modes[name]:
                yield f"loss puts {name or 'the model'} into {'training' if module.training else 'evaluation'} mode."
    if not torch.is_grad_enabled():
        torch.set_grad_enabled(True)
        yield "loss leaves gradients switched off."


def keeps_splits_apart(subject: Subject) -> Findings:
    """Checks that the validation examples are not the training examples."""
    seen = {
        split: [_content(subject.task.batch(split, np.array([place]))) for place in _few(subject, split)]
        for split in SPLITS
    }
    training, validation = set(seen["training"]), seen["validation"]
    if not all(training) or not all(validation):
        return  # a batch without tensors cannot be compared
    shared = sum(example in training for example in validation)
    if 2 * shared > len(validation):
        yield (
            f"{shared} of the first {len(validation)} validation examples are training examples too: a validation on "
            "them shows nothing. Look whether batch heeds the split."
        )


def _few(subject: Subject, split: Split) -> range:
    return range(min(MOST_COMPARED, subject.task.sizes[split]))


def _content(batch: Any) -> bytes:
    """The bytes of all tensors in a batch."""
    return b"|".join(value.numpy().tobytes() for value in vars(batch).values() if isinstance(value, Tensor))


def measures_each(subject: Subject) -> Findings:
    """Checks that measuring gives an entry for each example, which can be sent, and metrics that are finite numbers.

    They are the same however the examples were cut into batches, as ranks measure parts and put them together.
    """
    task, model = subject.task, subject.model
    places = subject.examples("validation")
    values = {name: value.clone() for name, value in model.state_dict().items()}
    with torch.no_grad():
        together: Any = task.measure(model, task.batch("validation", places))
        if not isinstance(together, list) or len(together) not in (0, len(places)):
            yield f"measure returns {quoted(together)}, but must return a list with an entry for each example."
            return
        apart = [entry for place in places for entry in task.measure(model, task.batch("validation", place[None]))]
    try:
        sent = json.loads(json.dumps(together))
    except (TypeError, ValueError) as error:
        yield f"measure returns what JSON cannot write ({error}), so that ranks cannot send it to each other."
        return
    metrics: Any = task.metrics(sent)
    if not isinstance(metrics, Mapping):
        yield f"metrics returns a {type(metrics).__name__}, but must return numbers by name."
        return
    other = task.metrics(apart)
    for name, number in metrics.items():
        if not isinstance(name, str) or not isinstance(number, int | float) or not math.isfinite(number):
            yield f"The metric {name!r} is {number!r}, but must be a finite number."
        elif name not in other or not close(number, other[name]):
            yield f"The metric {name!r} is another one if the examples are measured one by one."
    if task.score is not None and task.score not in metrics:
        yield f"The score of the task is {task.score!r}, which metrics does not return: it has {', '.join(metrics)}."
    if model.training or any(not torch.equal(model.state_dict()[name], value) for name, value in values.items()):
        yield "measure changes the model."


CHECKS: Mapping[str, Callable[[Subject], Findings]] = {
    "sizes": says_its_sizes,
    "loss": returns_loss_and_tokens,
    "sum": adds_up,
    "gradients": gradients_add_up,
    "repeatable": is_repeatable,
    "places": takes_any_places,
    "empty": takes_no_places,
    "model alone": leaves_the_model_alone,
    "splits": keeps_splits_apart,
    "metrics": measures_each,
}
"""Checks of a task with a model, by name."""


def checks_of_model(kind: type[Model], task: Task, settings: ModelSettings) -> dict[str, Callable[[], Findings]]:
    """The checks of a kind of model, by name: that it is built alike everywhere, and those of the task with it."""

    def alike() -> Findings:
        made = []
        for seed, before in ((0, 1), (0, 2), (1, 1)):
            torch.manual_seed(before)
            made.append(kind.build(task, settings, seed).state_dict())
        for name, value in made[0].items():
            if name not in made[1] or not torch.equal(value, made[1][name]):
                yield f"{name} begins with other values when the model is built again: draw them from the seed alone."
                return
        if kind.drawn and all(torch.equal(value, made[2][name]) for name, value in made[0].items() if name in made[2]):
            yield "The initial weights do not depend on the seed."

    def size() -> Findings:
        said = kind.size(task, settings).parameters
        built = sum(p.numel() for p in kind.build(task, settings, 0).parameters() if p.requires_grad)
        if said != built:
            yield f"size says {said:,} parameters, but the model that is built has {built:,} to train."

    return {"built alike": alike, "size": size, **checks_of_task(task, kind.build(task, settings, 0))}
