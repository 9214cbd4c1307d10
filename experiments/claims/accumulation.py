"""The claim that accumulating a batch from micro-batches trains the same as computing it at once."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.figures.style import BLUE, GREY, VERMILION, panels
from bigbatch.experiments.laboratory.claim import Claim, Column, Finding, Minutes, Verdict
from bigbatch.experiments.laboratory.point import Point
from bigbatch.experiments.laboratory.sweep import only_arm
from bigbatch.experiments.runs.run import Run
from bigbatch.experiments.training.assemble import Assembly
from bigbatch.tasks.documents import Documents
from bigbatch.tasks.sequence_to_sequence import PairBatch
from bigbatch.tasks.summarisation import Summarisation
from bigbatch.tasks.task import Task, TokenBatch
from bigbatch.tasks.translation import Translation
from bigbatch.training.division import divide

SAME_GRADIENT = 1e-12
"""Largest relative difference between two float64 gradients that counts as rounding."""

SAME_LOSS = 1e-3
"""Largest difference between two losses, in nats, that counts as rounding accumulated over a training in float32."""

DIFFERENT_GRADIENT = 1e-2
"""Relative difference above which two gradients count as different."""

LESS_MEMORY = 0.95
"""Largest share of the whole batch's memory that counts as less memory, and not as chance."""

GRADIENT_BATCHES = 4
"""Number of batches whose gradients are compared."""


class MeanOfMeans(Documents):
    """The common mistake: each micro-batch's loss is averaged over its own tokens, then these means are averaged."""

    def loss(self, model: nn.Module, batch: TokenBatch) -> tuple[Tensor, int]:
        """Compute the mean loss during training, as if it were one token's; the right sum during evaluation."""
        return averaged(model, *super().loss(model, batch))


class MeanOfMeansTranslation(Translation):
    """The same mistake in translation."""

    def loss(self, model: nn.Module, batch: PairBatch) -> tuple[Tensor, int]:
        """Compute the mean loss during training, as if it were one token's; the right sum during evaluation."""
        return averaged(model, *super().loss(model, batch))


class MeanOfMeansSummarisation(Summarisation):
    """The same mistake in summarisation."""

    def loss(self, model: nn.Module, batch: PairBatch) -> tuple[Tensor, int]:
        """Compute the mean loss during training, as if it were one token's; the right sum during evaluation."""
        return averaged(model, *super().loss(model, batch))


def averaged(model: nn.Module, summed: Tensor, tokens: int) -> tuple[Tensor, int]:
    """Divides a micro-batch's summed loss by its tokens while the model is trained, as if it were one token's."""
    return (summed / tokens, 1) if model.training else (summed, tokens)


WRONG = {
    name: f"{kind.__module__}:{kind.__name__}"
    for name, kind in {
        "documents": MeanOfMeans,
        "translation": MeanOfMeansTranslation,
        "summarisation": MeanOfMeansSummarisation,
    }.items()
}
"""Names of the tasks that make the mistake, by the name of the task that does not."""


class Figure(Claim):
    """One batch, computed in several ways."""

    claim = (
        "Accumulating a batch from micro-batches gives the same training as computing it at once, and differs in time "
        "and memory alone; averaging the micro-batches' mean losses does not give the same training."
    )
    source = (
        "a summed loss that is divided once is the same sum in another order; the mistake: 'Fixing gradient "
        "accumulation', Hugging Face 2024"
    )
    criterion = (
        "held if, accumulated, the float64 gradient is that of the whole batch to 1e-12 and every seed's validation "
        "loss after training in float32 to 0.001 nats, with at least 5 % less memory; and, with the mean of means, the "
        "gradient is more than 1 % off and every seed's loss more than 0.001 nats; failed if not"
    )
    minutes = Minutes(4, 0.5)

    def examine(self) -> Finding:
        """Compare gradients of the same batches, and trainings over the same data in the same order."""
        study = self.laboratory.study
        right, wrong = study.ragged, WRONG[study.ragged]
        updates, smallest = 30 if self.quick else 150, 2
        options: dict[str, Any] = {
            "task": right,
            "context": 64,
            "layers": 1 if self.quick else 2,
            "width": 64 if self.quick else 96,
            "optimizer": "adam",
            "learning_rate": 1e-3,
            "vocabulary": 1024,
            "heads": 4,
            "validation_tokens": study.validation_tokens(20_000),
        }
        assembly = study.assembly(options)
        read, written = assembly.task.source_tokens, assembly.task.example_tokens
        # A power of two, so that it can be halved to the end.
        batch = 1 << round(math.log2((4096 if self.quick else 8192) / (read + written)))
        options |= {"batch_size": batch, "tokens": math.floor(batch * written * updates)}
        ways = {
            "at once": (right, batch),
            "in 4": (right, batch // 4),
            f"in {batch // smallest}": (right, smallest),
            f"mean of {batch // smallest} means": (wrong, smallest),
        }
        seeds = range(2 if self.quick else 3)
        points = [
            Point({**self.laboratory.base, **options, "task": task, "micro_batch": micro_batch, "seed": seed})
            for task, micro_batch in ways.values()
            for seed in seeds
        ]
        # Before anything is trained: it says whether the text will do.
        summed = {name: (task == right, micro_batch) for name, (task, micro_batch) in ways.items()}
        if assembly.task.sizes["training"] < batch:
            raise ConfigurationError(
                f"The text has {assembly.task.sizes['training']} {study.examples} to train on, and a batch takes "
                f"{batch}: name {study.more_data} with --text, or none."
            )
        errors = gradient_errors(assembly, batch, summed)
        runs = self.laboratory.runs(points)
        rows = []
        for number, (name, (_, micro_batch)) in enumerate(ways.items()):
            own = runs[number * len(seeds) : (number + 1) * len(seeds)]
            rows.append(row_of(name, batch, micro_batch, own, runs[: len(seeds)], errors[name]))
        verdict, sentence = judged(rows)
        return Finding(
            verdict,
            sentence,
            f"{updates} updates of {batch} {study.examples} each, of different lengths and at most "
            f"{options['context']} tokens, with Adam in float32, {len(seeds)} seeds; and the gradients of "
            f"{GRADIENT_BATCHES} batches in float64, at the start.",
            columns=(
                Column("name", "batch"),
                Column("micro_batch", "micro-batch"),
                Column("gradient_error", "gradient off by", None),
                Column("loss", "validation loss", 4),
                Column("loss_spread", "± over seeds", 4),
                Column("apart", "apart from at once, nats", None),
                Column("tokens_per_second", "tokens/s"),
                Column("memory", "peak memory, MB"),
            ),
            rows=rows,
            details={"task": study.task},
            runs=[run.folder for run in runs],
        )

    def draw(self, finding: Finding, path: Path) -> None:
        """Draw gradient errors, losses, throughput and peak memory of each way to compute the batch."""
        draw_ways(finding, path)


def gradient_errors(assembly: Assembly, batch: int, ways: dict[str, tuple[bool, int]]) -> dict[str, list[float]]:
    """Measures how far the gradient of each way is from the whole batch's, relatively, in float64, for several batches.

    Args:
        assembly: makes the task and the model.
        batch: number of examples in a batch.
        ways: for each way, whether losses are summed, and the number of examples in a micro-batch.
    """
    task, model = assembly.task, assembly.model().double()
    lengths = task.lengths("training")
    errors: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(GRADIENT_BATCHES):
        examples = np.random.default_rng(number).permutation(task.sizes["training"])[:batch]
        whole = gradient(model, task, [examples], summed=True)
        for name, (summed, micro_batch) in ways.items():
            parts = [examples[first : first + micro_batch] for first in range(0, batch, micro_batch)]
            if lengths is not None:  # as a trainer does it
                (parts,) = divide(examples, lengths[examples], 1, batch // micro_batch).micro_batches
            error = (gradient(model, task, parts, summed=summed) - whole).norm() / whole.norm()
            errors[name].append(float(error))
    return errors


def gradient(model: nn.Module, task: Task, parts: Sequence[Any], *, summed: bool) -> Tensor:
    """Computes the gradient of a batch's mean loss, (elements,), from micro-batches.

    Args:
        model: the model; its own gradients are overwritten.
        task: the task that computes the loss.
        parts: (examples,) numbers of the examples of each micro-batch.
        summed: whether to divide the summed losses once by all tokens; else take the mean of the micro-batches' mean
            losses.
    """
    model.zero_grad()
    tokens = 0
    for part in parts:
        loss, counted = task.loss(model, task.batch("training", part))
        (loss if summed else loss / counted).backward()  # type: ignore[no-untyped-call]  # torch gives it no types
        tokens += counted
    flat = torch.cat([parameter.grad.flatten() for parameter in model.parameters() if parameter.grad is not None])
    return flat / (tokens if summed else len(parts))


def row_of(
    name: str, batch: int, micro_batch: int, runs: Sequence[Run], reference: Sequence[Run], errors: Sequence[float]
) -> dict[str, Any]:
    """Makes the table's row for one way to compute the batch, from its runs over all seeds.

    Args:
        name: the way's name.
        batch: number of examples in the batch.
        micro_batch: number of examples in a micro-batch.
        runs: one run per seed.
        reference: the runs that computed the batch at once, with the same seeds in the same order.
        errors: relative errors of the gradient, one per compared batch.
    """
    arms = [only_arm(run) for run in runs]
    losses = [arm["validation_loss"] for arm in arms]
    apart = [loss - only_arm(run)["validation_loss"] for loss, run in zip(losses, reference, strict=True)]
    wrong = any(run.summary["task"] in WRONG.values() for run in runs)
    return {
        "name": name,
        "micro_batch": micro_batch,
        "accumulation": batch // micro_batch,
        "wrong": wrong,
        "gradient_error": max(errors),
        "gradient_errors": list(errors),
        "loss": float(np.mean(losses)),
        "loss_spread": float(np.std(losses, ddof=1)),
        "losses": losses,
        "apart": max(map(abs, apart)),
        "differences": apart,
        # The mistake counts a micro-batch as a token: its numbers of tokens are none.
        "tokens_per_second": None if wrong else float(np.mean([arm["tokens_per_second"] for arm in arms])),
        "memory": float(np.mean([arm["peak_memory_bytes"] for arm in arms])) / 1e6,
    }


def judged(rows: Sequence[dict[str, Any]]) -> tuple[Verdict, str]:
    """Decides the verdict on the claim, and puts the numbers that decided it into a sentence."""
    at_once, *accumulated = (row for row in rows if not row["wrong"])
    wrong = [row for row in rows if row["wrong"]]
    error = max(row["gradient_error"] for row in accumulated)
    apart = max(row["apart"] for row in accumulated)
    mistake = min(row["gradient_error"] for row in wrong)
    differences = [difference for row in wrong for difference in row["differences"]]
    least = min(accumulated, key=lambda row: float(row["memory"]))
    slow = min(accumulated, key=lambda row: float(row["tokens_per_second"]))
    sentence = (
        f"Accumulated, the gradient is that of the batch at once to {error:.0e}, and validation losses are at most "
        f"{apart:.0e} nats apart; {least['name']} takes {at_once['memory'] - least['memory']:.0f} MB less memory, and "
        f"{slow['name']} runs at {slow['tokens_per_second'] / at_once['tokens_per_second']:.2g} times the speed. The "
        f"mean of means has a gradient that is {mistake:.0%} off, and its losses end {min(differences):+.3f} to "
        f"{max(differences):+.3f} nats from those of the same seed at once."
    )
    if not all(map(math.isfinite, (error, apart, mistake, *differences))):
        return Verdict.UNTOLD, "A training ended with a loss that is no number."
    same = error <= SAME_GRADIENT and apart <= SAME_LOSS and least["memory"] <= LESS_MEMORY * at_once["memory"]
    other = mistake > DIFFERENT_GRADIENT and min(map(abs, differences)) > SAME_LOSS
    return (Verdict.HELD if same and other else Verdict.FAILED), sentence


def draw_ways(finding: Finding, path: Path) -> None:
    """Draw four panels to a PNG file, with a bar or a dot for each way to compute the batch."""
    rows = finding.rows
    figure, (error, loss, speed, memory) = panels(1, 4, width=15.0, height=4.4)
    names = [row["name"].replace("mean of", "mean of\n") for row in rows]
    places = range(len(rows))
    shades = [VERMILION if row["wrong"] else BLUE for row in rows]
    floor = 1e-17
    error.bar(places, [max(row["gradient_error"], floor) for row in rows], color=shades, width=0.65)
    error.set_yscale("log")
    error.set_ylim(floor, 3)
    error.axhline(SAME_GRADIENT, color=GREY, linewidth=0.8, linestyle="--")
    error.annotate("the same but for rounding", (0, SAME_GRADIENT), (0, 3), textcoords="offset points", fontsize=8)
    for place, row in zip(places, rows, strict=True):
        height = max(row["gradient_error"], floor)
        error.annotate(
            f"{row['gradient_error']:.1g}", (place, height), (0, 2), textcoords="offset points", ha="center", fontsize=8
        )
    error.set_title("Gradient in float64", loc="left")
    error.set_ylabel("off by, relatively, at most")
    for place, row in zip(places, rows, strict=True):
        loss.plot([place] * len(row["losses"]), row["losses"], "o", color=shades[place], alpha=0.8, markersize=6)
    loss.set_title("Loss after training, every seed", loc="left")
    loss.set_ylabel("validation loss (nats per token)")
    _bars(speed, [row["tokens_per_second"] for row in rows], shades, "Speed", "tokens per second")
    _bars(memory, [row["memory"] for row in rows], shades, "Peak memory", "of the process (MB)")
    for axis in (error, loss, speed, memory):
        axis.set_xticks(places, names, fontsize=8)
        axis.set_xlim(-0.6, len(rows) - 0.4)
    figure.suptitle(f"One batch, computed in several ways: the claim {finding.verdict.value}", x=0.01, ha="left")
    figure.savefig(path)


def _bars(axis: Any, values: Sequence[float | None], shades: Sequence[str], title: str, label: str) -> None:
    """A bar for each that is known."""
    drawn = axis.bar(range(len(values)), [value or 0 for value in values], color=shades, width=0.65)
    axis.bar_label(drawn, [f"{value:,.0f}" if value else "not\ncounted" for value in values], fontsize=8)
    axis.set_title(title, loc="left")
    axis.set_ylabel(label)
