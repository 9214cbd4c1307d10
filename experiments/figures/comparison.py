"""The comparison figure: throughput, where the time goes, loss and score against tokens and time, the noise scale."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, LogFormatter

from bigbatch.experiments.figures.style import BLUE, GREY, LINES, ORANGE, Line, colour, panels
from bigbatch.experiments.runs.run import Run


def comparison(runs: Sequence[Run]) -> Figure:
    """Draw the comparison figure of one run, or of several runs with the same arms.

    Args:
        runs: finished runs; each arm has a colour, each run a line style. With only one arm, each run has a colour too.
    """
    bars = [(run, arm) for run in runs for arm in run.summary["arms"]]
    several = len(runs) > 1
    noisy = any("noise_scale" in arm for _, arm in bars)
    score = runs[0].summary.get("score")
    rows, width = 2 + bool(score) + noisy, 10 + (1.5 if several else 0)
    figure, (throughput, split, by_tokens, by_seconds, *rest) = panels(rows, 2, width=width, height=3.75 * rows)
    labels = [f"{run.summary['strategy']}\n{arm['name']}" if several else arm["name"] for run, arm in bars]
    arm_names = list(dict.fromkeys(arm["name"] for _, arm in bars))

    def shade(run: Run, arm: str) -> str:
        return colour(arm_names.index(arm) if len(arm_names) > 1 or not several else runs.index(run))

    _throughput(throughput, bars, labels, [shade(run, arm["name"]) for run, arm in bars])
    _split(split, bars, labels)
    for axis, key, unit in ((by_tokens, "tokens", "tokens"), (by_seconds, "seconds", "training time (s)")):
        for number, run in enumerate(runs):
            for arm in run.summary["arms"]:
                _loss(axis, run, arm["name"], key, shade(run, arm["name"]), LINES[number % len(LINES)])
        axis.set_xlabel(unit)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_ylabel("loss (nats per token)")
        axis.set_title(f"Loss against {'tokens' if key == 'tokens' else 'time'}", loc="left")
    for name in arm_names if len(arm_names) > 1 or not several else ():
        by_tokens.plot([], [], color=shade(runs[0], name), marker="o", markersize=3, label=name)
    if several:
        for number, run in enumerate(runs):
            own = GREY if len(arm_names) > 1 else shade(run, arm_names[0])
            by_tokens.plot([], [], color=own, linestyle=LINES[number % len(LINES)], label=run.summary["strategy"])
    by_tokens.plot([], [], color=GREY, linewidth=1, alpha=0.5, label="training (thin)")
    by_tokens.legend(frameon=False, fontsize=8)
    if score:
        _scores(rest[:2], runs, score, shade)
    if noisy:
        noise, corner = rest[-2:]
        grid = noise.get_gridspec()
        assert grid is not None, "`panels` has made one"
        noise.set_subplotspec(grid[-1, :])
        corner.remove()
        _noise_scales(noise, runs, shade)
    first = runs[0].summary
    names = ", ".join(run.summary["strategy"] for run in runs)
    task = f", {first['task']}" if first.get("task") else ""  # a summary need not say
    figure.suptitle(
        f"{names}: {first['workers']} workers, {first['parameters']:,} parameters{task}{_simulated(first)}",
        x=0.01,
        ha="left",
    )
    return figure


def draw_comparison(runs: Sequence[Run], path: Path) -> None:
    """Write the comparison figure of runs to a PNG file."""
    comparison(runs).savefig(path)


def _simulated(summary: dict[str, Any]) -> str:
    simulated = summary.get("simulated")
    return f", in simulated time over {simulated['network']}" if simulated else ""


def _throughput(axis: Axes, bars: list[tuple[Run, dict[str, Any]]], labels: list[str], colours: list[str]) -> None:
    values = [arm["tokens_per_second"] for _, arm in bars]
    drawn = axis.bar(range(len(bars)), [value or 0.0 for value in values], color=colours, width=0.7)
    labelled = ["not known" if value is None else f"{value / 1e3:.1f}k" for value in values]
    axis.bar_label(drawn, labels=labelled, fontsize=8)
    _name_bars(axis, labels)
    axis.set_ylabel("tokens per second")
    axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_title("Throughput", loc="left")


def _split(axis: Axes, bars: list[tuple[Run, dict[str, Any]]], labels: list[str]) -> None:
    bottom = [0.0] * len(bars)
    parts = (("compute", GREY, ""), ("communication", BLUE, "//"), ("waiting", ORANGE, ".."))
    for name, shade, hatch in parts:
        # Per token, so that arms with different numbers of updates can be held against each other.
        values = [
            (arm[f"{name}_seconds"] or 0.0) * arm["worker_updates"] / arm["tokens"] * 1e6 if arm["tokens"] else 0.0
            for _, arm in bars
        ]
        axis.bar(
            range(len(bars)), values, bottom=bottom, color=shade, hatch=hatch, edgecolor="white", width=0.7, label=name
        )
        bottom = [below + value for below, value in zip(bottom, values, strict=True)]
    _name_bars(axis, labels)
    axis.set_ylim(0, 1.25 * max(bottom) or 1.0)
    axis.legend(frameon=False, fontsize=8, ncols=3, loc="upper left")
    axis.set_ylabel("worker time per token (µs)")
    axis.set_title("Where the time goes", loc="left")


def _name_bars(axis: Axes, labels: list[str]) -> None:
    axis.set_xticks(range(len(labels)), labels, fontsize=8 if len(labels) <= 6 else 6.5)


def _loss(axis: Axes, run: Run, arm: str, key: str, shade: str, line: Line) -> None:
    updates = [record for record in run.curve(arm, "update") if record[f"total_{key}"] is not None]
    axis.plot(
        [record[f"total_{key}"] for record in updates],
        smoothed([record["loss"] for record in updates]),
        color=shade,
        linestyle=line,
        linewidth=0.8,
        alpha=0.35,
    )
    validations = run.curve(arm, "validation")
    measured = [record for record in validations if record["loss"] is not None and record[key] is not None]
    axis.plot(
        [record[key] for record in measured],
        [record["loss"] for record in measured],
        color=shade,
        linestyle=line,
        linewidth=1.6,
        marker="o",
        markersize=3,
    )


def _scores(axes: Sequence[Axes], runs: Sequence[Run], score: str, shade: Callable[[Run, str], str]) -> None:
    """The score against tokens and against time, and that of the trivial answers as a line."""
    for axis, key, unit in zip(axes, ("tokens", "seconds"), ("tokens", "training time (s)"), strict=True):
        for number, run in enumerate(runs):
            for arm in run.summary["arms"]:
                measured = [
                    (record[key], value)
                    for record in run.curve(arm["name"], "validation")
                    if (value := record.get("metrics", {}).get(score)) is not None and record[key] is not None
                ]
                axis.plot(
                    [at for at, _ in measured],
                    [value for _, value in measured],
                    color=shade(run, arm["name"]),
                    linestyle=LINES[number % len(LINES)],
                    linewidth=1.6,
                    marker="o",
                    markersize=3,
                )
        first = runs[0].summary
        trivial = first["arms"][0].get("baseline", {}).get(score)
        if trivial is not None:
            axis.axhline(trivial, color=GREY, linewidth=0.9, linestyle="--")
            axis.annotate(
                str(first.get("trivial_answer") or "trivial answer"),
                (1, trivial),
                (-3, 3),
                xycoords=("axes fraction", "data"),
                textcoords="offset points",
                ha="right",
                color="#555555",
                fontsize=7.5,
            )
        axis.set_ylim(bottom=0)
        axis.set_xlabel(unit)
        axis.xaxis.set_major_formatter(EngFormatter(sep=""))
        axis.set_ylabel(score)
        axis.set_title(f"{score} against {'tokens' if key == 'tokens' else 'time'}", loc="left")


def _noise_scales(axis: Axes, runs: Sequence[Run], shade: Callable[[Run, str], str]) -> None:
    """The estimates so far, from the first that is known, beside the batches that the arms have."""
    several, ends = len(runs) > 1, []
    for number, run in enumerate(runs):
        for arm in run.summary["arms"]:
            records = [record for record in run.curve(arm["name"], "update") if (record.get("noise_scale") or 0) > 0]
            if not records:
                continue
            tokens = [record["total_tokens"] for record in records]
            scales = [record["noise_scale"] for record in records]
            own = shade(run, arm["name"])
            axis.plot(tokens, scales, color=own, linestyle=LINES[number % len(LINES)], linewidth=1.4)
            name = f"{run.summary['strategy']}, {arm['name']}" if several else arm["name"]
            ends.append((scales[-1], tokens[-1], name, own))
    batches: dict[int, list[str]] = {}
    for arm in runs[0].summary["arms"]:
        batches.setdefault(arm["global_batch"], []).append(arm["name"])
    for batch, names in batches.items():
        axis.axhline(batch, color=GREY, linewidth=0.8, linestyle=":")
        axis.annotate(
            f"batch of {', '.join(names)}: {batch}",
            (0, batch),
            (3, 2),
            xycoords=("axes fraction", "data"),
            textcoords="offset points",
            color="#555555",
            fontsize=7.5,
            bbox={"color": "white", "alpha": 0.8, "pad": 0.5},
        )
    axis.set_yscale("log")
    axis.yaxis.set_major_formatter(EngFormatter(sep=""))
    axis.yaxis.set_minor_formatter(LogFormatter(minor_thresholds=(1.5, 0.5)))
    axis.set_xlim(0, 1.1 * max((at for _, at, _, _ in ends), default=1))
    axis.set_xlabel("tokens")
    axis.xaxis.set_major_formatter(EngFormatter(sep=""))
    axis.set_ylabel("noise scale (examples)")
    axis.set_title("Gradient noise scale against tokens", loc="left")
    low, high = axis.get_ylim()
    gap, place = (high / low) ** 0.06, 0.0
    for scale, at, name, own in sorted(ends):  # the labels of curves that end close together go above each other
        place = max(scale, place * gap)
        axis.annotate(
            name,
            (at, place),
            (5, 0),
            textcoords="offset points",
            color=own,
            fontsize=8,
            va="center",
            annotation_clip=False,
        )


def smoothed(losses: list[float | None]) -> list[float]:
    """Smooths losses by an exponential average over about ten updates, corrected for its start; it skips None."""
    smooth, average, weight = [], 0.0, 0.0
    for loss in losses:
        if loss is not None:
            average, weight = 0.9 * average + 0.1 * loss, 0.9 * weight + 0.1
        smooth.append(average / weight if weight else float("nan"))
    return smooth
