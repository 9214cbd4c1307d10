"""The claim that half precision trains like float32, if small gradients are scaled and weights stay in float32."""

import math
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.precisions import BF16, FP16, FP32
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.alone import Alone
from bigbatch.experiments.figures.style import CYCLE, LINES, panels
from bigbatch.experiments.laboratory.claim import Claim, Column, Finding, Minutes, Verdict
from bigbatch.experiments.laboratory.point import Point
from bigbatch.experiments.laboratory.sweep import only_arm
from bigbatch.experiments.measuring.precision_costs import costs
from bigbatch.experiments.runs.run import Run
from bigbatch.experiments.training.assemble import Assembly
from bigbatch.training.batches import BatchPlan
from bigbatch.training.loss_scale import loss_scale_for
from bigbatch.training.precision import PRECISIONS

SAME = 0.005
"""Largest difference between two validation losses with the same seed, in nats, that counts as the same training."""

WORSE = 2 * SAME
"""Smallest difference that counts as a worse one."""

MOST = 50
"""More than so many per cent of the scores' gradients vanish in fp16 where gradients are called small."""

VANISHING = 2**24
"""Scores in a micro-batch, one for every token and every token of the vocabulary. So many share a gradient of a few
nats that most of them get less than fp16's smallest number, 6e-8."""

SMALL_RATE = 1e-4
"""A learning rate at which Adam's steps are smaller than half the distance between neighbouring numbers of bf16 around
the initial weights."""

LOOKED_AT, TIMED = 64, 32
"""Numbers of examples whose gradients are looked at, and whose computing is timed."""

COLUMNS = (
    Column("case", "what is hard"),
    Column("precision", "precision"),
    Column("loss", "validation loss", 4),
    Column("apart", "above fp32, nats, at most", 4),
    Column("vanished", "score gradients lost, %", 1),
    Column("skipped", "updates skipped"),
    Column("speed", "speed / fp32", 2),
    Column("memory", "memory, MB", 1),
)
"""Columns of the table; a row about losses has nothing to say on speed, nor one about speed on losses."""

UNSCALED, WEIGHTS = "fp16-unscaled", "bf16-weights"

ARITHMETIC_STEPS, ARITHMETIC_STEP = 1_000, 0.001
"""A weight of 1 is changed so many times by minus so much."""


class Figure(Claim):
    """Trainings in several precisions: one with gradients that vanish, one with small steps; and what they cost."""

    claim = (
        "Trained in bf16, or in fp16 with a loss scale, a model with float32 weights learns as in fp32; without the "
        "scale small gradients vanish in fp16, and without float32 weights small steps vanish in bf16."
    )
    source = "Micikevicius et al. 2018, sections 3.1 and 3.2; Kalamkar et al. 2019 on bf16"
    criterion = (
        "held if bf16's and scaled fp16's validation losses end within 0.005 nats of fp32's with the same seed, and "
        "that of fp16 without a scale at least 0.01 nats above, where most gradients of the scores vanish without it; "
        "and if, at a learning rate of 1e-4, that of bf16 ends within 0.005 nats of fp32's and that of bf16 weights at "
        "least 0.01 nats above; all for every seed; failed if not, and untold if a loss ends as no number"
    )
    minutes = Minutes(9, 2)

    def examine(self) -> Finding:
        """Train in every precision where gradients vanish and where steps are small, and measure speed by width."""
        study = self.laboratory.study
        base: dict[str, Any] = {**study.options, "optimizer": "adam"}
        base |= {"validation_tokens": study.validation_tokens(8_000)}
        assembly = study.assembly({**base, "layers": 1, "width": 16, "heads": 2})
        task = assembly.task
        crowd = 1 << round(math.log2(VANISHING / task.vocabulary_size / task.example_tokens))
        if task.sizes["training"] < crowd:
            raise ConfigurationError(
                f"The text has {task.sizes['training']} {study.examples} to train on, and a micro-batch takes "
                f"{crowd}: name {study.more_data} with --text, or none."
            )
        updates, small_updates = (26, 150) if self.quick else (30, 600)
        widths = (64, 256) if self.quick else (32, 64, 128, 256)
        cases = {
            "small gradients": (
                (FP32, BF16, FP16, UNSCALED),
                {"layers": 1, "width": 16, "heads": 2, "learning_rate": 5e-3, "micro_batch": crowd},
                updates,
            ),
            "small steps": (
                (FP32, BF16, WEIGHTS),
                {"layers": 1, "width": 64, "heads": 4, "learning_rate": SMALL_RATE, "micro_batch": 32},
                small_updates,
            ),
        }
        seeds = range(1 if self.quick else 2)
        points = {
            (case, precision, seed): self.point({**base, **options}, precision, seed, count, task.example_tokens)
            for case, (precisions, options, count) in cases.items()
            for precision in precisions
            for seed in seeds
        }
        runs = dict(zip(points, self.laboratory.runs(list(points.values())), strict=True))
        gradients = score_gradients(study.assembly({**base, **cases["small gradients"][1]}), crowd, updates)
        tokens = crowd * task.example_tokens
        vanished = {
            name: lost_in_fp16(gradients, loss_scale_for(PRECISIONS[name], tokens).factor) for name in (FP16, UNSCALED)
        }
        rows = [
            row_of(
                case,
                precision,
                [runs[case, precision, seed] for seed in seeds],
                [runs[case, FP32, seed] for seed in seeds],
            )
            for case, (precisions, _, _) in cases.items()
            for precision in precisions
        ]
        for row in rows:
            row["vanished"] = vanished.get(row["precision"]) if row["case"] == "small gradients" else None
        timings = [row for width in widths for row in self.timed({**base, "layers": 2, "width": width, "heads": 4})]
        last_weights = {name: weight_after(name) for name in (FP32, WEIGHTS)}
        verdict, sentence = judged(rows, last_weights)
        return Finding(
            verdict,
            sentence,
            f"{study.words}: {updates} updates of {crowd * task.example_tokens:,.0f} tokens at once with a rate of "
            f"0.005, and {small_updates} of {32 * task.example_tokens:,.0f} with a rate of {SMALL_RATE:g}, with Adam "
            f"and {len(seeds)} seed{'s' if len(seeds) > 1 else ''}; and a micro-batch of {TIMED} {study.examples} on "
            "two layers of several widths, one core, in all precisions by turns.",
            columns=COLUMNS,
            rows=[{**dict.fromkeys(column.key for column in COLUMNS), **row} for row in (*rows, *timings)],
            details={"task": study.task, "unit": study.unit, "weights": last_weights},
            runs=[run.folder for run in runs.values()],
        )

    def point(self, options: dict[str, Any], precision: str, seed: int, updates: int, example_tokens: float) -> Point:
        """Makes the point of one training of so many updates of one micro-batch each."""
        micro_batch = options["micro_batch"]
        plan = {"accumulate": 1, "tokens": math.floor(micro_batch * updates * example_tokens)}
        return Point({**self.laboratory.base, **options, **plan, "precision": precision, "seed": seed})

    def timed(self, options: dict[str, Any]) -> list[dict[str, Any]]:
        """Makes the table's rows for the speed and memory of a model in every precision."""
        names = (FP32, BF16, WEIGHTS, FP16)
        assemblies = [self.laboratory.study.assembly({**options, "precision": name}) for name in names]
        measured = costs(assemblies, TIMED, turns=3 if self.quick else 5)
        return [
            {
                "case": f"width {options['width']}",
                "precision": name,
                "speed": measured[0].seconds / cost.seconds,
                "memory": cost.bytes / 1e6,
            }
            for name, cost in zip(names, measured, strict=True)
        ]

    def draw(self, finding: Finding, path: Path) -> None:
        """Draw the losses of both trainings, and speed and memory by width."""
        draw_precisions(finding, path)


def score_gradients(assembly: Assembly, micro_batch: int, updates: int) -> torch.Tensor:
    """Trains in float32, and returns the gradients that the scores of some examples have of the summed loss then.

    Args:
        assembly: of the training.
        micro_batch: number of examples of an update, which is one micro-batch.
        updates: number of updates.

    Returns:
        (examples, tokens, vocabulary).
    """
    plan, ring, task = BatchPlan(micro_batch, accumulation=1, workers=1), STRATEGIES.load("ring"), assembly.task
    trainer = assembly.trainer(
        ring(Alone()), assembly.optimizer(plan, ring), plan, torch.device("cpu"), examples=micro_batch * updates
    )
    deque(trainer.updates(), maxlen=0)
    seen: list[torch.Tensor] = []

    def keep(_: torch.nn.Module, __: Any, scores: torch.Tensor) -> None:
        scores.register_hook(seen.append)  # type: ignore[no-untyped-call]  # torch gives it no types

    trainer.model.register_forward_hook(keep)
    loss, _ = task.loss(trainer.model, task.batch("training", np.arange(LOOKED_AT)))
    loss.backward()  # type: ignore[no-untyped-call]  # torch gives it no types
    return seen[0]


def lost_in_fp16(gradients: torch.Tensor, factor: float) -> float:
    """Computes how many per cent of some gradients are 0 in fp16, times a loss's factor, and not in float32."""
    scaled = gradients * factor
    return 100 * float(((scaled.half() == 0) & (scaled != 0)).float().mean())


def weight_after(precision: str) -> float:
    """What is left of a weight of 1 in the precision of the weights, after 1,000 steps of -0.001 by torch's SGD."""
    weight = torch.nn.Parameter(torch.ones(1, dtype=PRECISIONS[precision].dtype))
    optimizer = torch.optim.SGD([weight], lr=ARITHMETIC_STEP)
    weight.grad = torch.ones_like(weight)
    for _ in range(ARITHMETIC_STEPS):
        optimizer.step()
    return weight.item()


def row_of(case: str, precision: str, runs: Sequence[Run], reference: Sequence[Run]) -> dict[str, Any]:
    """Makes the table's row for one precision, from its runs over all seeds.

    Args:
        case: what is hard about the training.
        precision: name of the precision.
        runs: one run per seed.
        reference: the runs in fp32 with the same seeds, in the same order.
    """
    arms = [only_arm(run) for run in runs]
    losses = [loss_of(arm) for arm in arms]
    apart = [loss - loss_of(only_arm(run)) for loss, run in zip(losses, reference, strict=True)]
    curve = [(record["total_tokens"], record["loss"]) for record in runs[0].metrics if record["kind"] == "update"]
    return {
        "case": case,
        "precision": precision,
        "loss": float(np.mean(losses)),
        "losses": losses,
        "apart": max(apart, key=abs),
        "differences": apart,
        "skipped": sum(arm["skipped_updates"] for arm in arms),
        "curve": curve,
    }


def loss_of(arm: dict[str, Any]) -> float:
    """The validation loss of an arm in nats; NaN where a summary has none, because it was no number."""
    loss = arm["validation_loss"]
    return math.nan if loss is None else float(loss)


def judged(rows: Sequence[dict[str, Any]], weights: dict[str, float]) -> tuple[Verdict, str]:
    """Decides the verdict on the claim, and puts the numbers that decided it into a sentence."""
    differences = {(row["case"], row["precision"]): row["differences"] for row in rows}
    gradients, steps = "small gradients", "small steps"
    alike = [*differences[gradients, BF16], *differences[gradients, FP16], *differences[steps, BF16]]
    lost, stuck = differences[gradients, UNSCALED], differences[steps, WEIGHTS]
    share = {row["precision"]: row["vanished"] for row in rows if row["case"] == gradients}
    sentence = (
        f"bf16 and scaled fp16 end at most {max(map(abs, alike)):.0e} nats from fp32. Without a scale, "
        f"{share[UNSCALED]:.0f} % of the scores' gradients vanish in fp16 ({share[FP16]:.0f} % with one), and the loss "
        f"ends {min(lost):+.3f} nats from fp32's at least. With weights in bf16 small steps vanish: the loss ends "
        f"{min(stuck):+.3f} nats from fp32's at least, and a weight of 1 that is lowered {ARITHMETIC_STEPS:,} times by "
        f"{ARITHMETIC_STEP:g} is {weights[WEIGHTS]:g} in the end."
    )
    if not all(map(math.isfinite, (*alike, *lost, *stuck))):
        return Verdict.UNTOLD, "A training ended with a loss that is no number."
    held = max(map(abs, alike)) <= SAME and min(*lost, *stuck) >= WORSE and share[UNSCALED] > MOST
    return (Verdict.HELD if held else Verdict.FAILED), sentence


def draw_precisions(finding: Finding, path: Path) -> None:
    """Draw four panels to a PNG file: the losses of both trainings, speed by width, and memory by width."""
    figure, axes = panels(1, 4, width=16.0, height=4.4)
    names = list(dict.fromkeys(row["precision"] for row in finding.rows))
    looks: dict[str, dict[str, Any]] = {
        name: {"color": CYCLE[place], "linestyle": LINES[place]} for place, name in enumerate(names)
    }
    for axis, case in zip(axes, ("small gradients", "small steps"), strict=False):
        own = [row for row in finding.rows if row["case"] == case]
        plain = np.array(own[0]["curve"], dtype=np.float64).T[1]  # NaN where there is no loss
        for row in own[1:]:
            tokens, losses = np.array(row["curve"], dtype=np.float64).T
            axis.plot(tokens / 1e3, losses - plain, label=row["precision"], **looks[row["precision"]])
        axis.axhline(0, color="#999999", linewidth=0.8)
        axis.set_xlabel("tokens trained, thousands")
        axis.set_ylabel(f"training loss above fp32's ({finding.details['unit']})")
        axis.legend(frameon=False, fontsize=8)
    axes[0].set_title("Gradients of the scores below 6e-8", loc="left", fontsize=10)
    axes[1].set_title(f"Steps of {SMALL_RATE:g}", loc="left", fontsize=10)
    timings = [row for row in finding.rows if row["speed"] is not None]
    for axis, key, title, label in (
        (axes[2], "speed", "Speed by width", "times that of fp32"),
        (axes[3], "memory", "Memory by width", "weights, their kin, activations (MB)"),
    ):
        for name in names:
            own = [row for row in timings if row["precision"] == name]
            if own:
                widths = [int(row["case"].split()[1]) for row in own]
                axis.plot(widths, [row[key] for row in own], marker="o", markersize=4, label=name, **looks[name])
        axis.set_xscale("log", base=2)
        axis.set_xticks(widths_of(timings), [str(width) for width in widths_of(timings)])
        axis.set_xlabel("width of the model")
        axis.set_ylabel(label)
        axis.set_title(title, loc="left", fontsize=10)
    axes[2].legend(frameon=False, fontsize=8)
    axes[2].set_yscale("log")
    axes[2].axhline(1, color="#999999", linewidth=0.8)
    axes[3].set_ylim(bottom=0)
    figure.suptitle(f"The same trainings in several precisions: the claim {finding.verdict.value}", x=0.01, ha="left")
    figure.savefig(path)


def widths_of(timings: Sequence[Any]) -> list[int]:
    """The widths at which speed was measured, in order."""
    return sorted({int(row["case"].split()[1]) for row in timings})
