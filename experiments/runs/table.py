"""The results of runs for a reader: a table, and a sentence about it."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from bigbatch.comm.precisions import FP32
from bigbatch.experiments.runs.run import FORMATS, Run

Summary = dict[str, Any]

# What stands at the left, the summary's key, factor, decimals.
SPEED_ROWS = (
    ("updates", "updates", 1, 0),
    ("throughput, tokens/s", "tokens_per_second", 1, 0),
    ("time per update, ms", "update_seconds", 1e3, 1),
    ("  compute", "compute_seconds", 1e3, 1),
    ("  communication, exposed", "communication_seconds", 1e3, 1),
    ("  waiting", "waiting_seconds", 1e3, 1),
    ("communication in all, ms", "total_communication_seconds", 1e3, 1),
    ("sent per update and worker, MB", "bytes_sent_per_update", 1e-6, 2),
    ("peak memory of a worker, MB", "peak_memory_bytes", 1e-6, 0),
)

LOSS_ROWS = (
    ("training loss, nats/token", "training_loss", 1, 3),
    ("validation loss, nats/token", "validation_loss", 1, 3),
)

# Of runs whose examples are of different lengths.
LENGTH_ROWS = (
    ("padding, % of the tokens", "padding", 100, 1),
    ("slowest worker's tokens / mean", "imbalance", 1, 3),
)

# Of runs that train until a loss is reached.
TARGET_ROWS = (
    ("updates until the target", "updates_to_target", 1, 0),
    ("tokens until the target, k", "tokens_to_target", 1e-3, 0),
    ("seconds until the target", "seconds_to_target", 1, 1),
)


def setting(summary: Summary) -> str:
    """Makes a sentence about what was simulated; empty if nothing was."""
    simulated = summary.get("simulated")
    if not simulated:
        return ""
    slowed = "" if simulated["straggler"] == "none" else f", slowed by {simulated['straggler']}"
    return (
        f"Simulated: {simulated['workers']} workers, each computing on {simulated['gpu']}{slowed}, over "
        f"{simulated['network']}; the gradients and losses are real, the times are the simulator's."
    )


@dataclass(frozen=True)
class TableSection:
    """A section of a table: rows that belong together, such as those of one arm.

    Attributes:
        title: title of the section; empty if the table has only one.
        rows: rows of a label and a cell for each column, in the units that the label names.
    """

    title: str
    rows: list[tuple[str, list[str]]]


def table_of(summaries: Sequence[Summary]) -> tuple[list[str], list[TableSection]]:
    """Makes column heads and sections: a column per arm of one run, or a column per run and a section per arm."""
    workers = summaries[0]["workers"]
    if len(summaries) == 1:
        return _names(summaries[0]), [TableSection("", _rows(summaries[0]["arms"], workers))]
    arms = {name: [_arm(summary, name) for summary in summaries] for name in _names(summaries[0])}
    heads = [summary["strategy"] for summary in summaries]
    return heads, [TableSection(name, _rows(own, workers)) for name, own in arms.items()]


def _rows(arms: list[dict[str, Any]], workers: int) -> list[tuple[str, list[str]]]:
    units = {_unit(arm) for arm in arms}
    rows = [
        (f"global batch, {units.pop()}", [str(arm["global_batch"]) for arm in arms])
        if len(units) == 1
        else ("global batch", [f"{arm['global_batch']} {_unit(arm)}" for arm in arms]),
        (
            "  = workers × micro × accumulation",
            [f"{arm.get('workers', workers)} × {arm['micro_batch']} × {arm['accumulation']}" for arm in arms],
        ),
    ]
    rows += _formats(arms)
    rows += _numbers(SPEED_ROWS, arms)
    if any("padding" in arm for arm in arms):
        rows += _numbers(LENGTH_ROWS, arms)
    rows += _numbers(LOSS_ROWS, arms)
    rows.append(("validation perplexity", [_number(perplexity(arm["validation_loss"]), 1, 1) for arm in arms]))
    rows += _metrics(arms)
    if any("updates_to_target" in arm for arm in arms):
        rows += _numbers(TARGET_ROWS, arms)
    if any("noise_scale" in arm for arm in arms):
        rows.append(("noise scale, examples", list(map(_noise_scale, arms))))
    if any(arm["skipped_updates"] for arm in arms):
        rows.append(("updates that were not applied", [str(arm["skipped_updates"]) for arm in arms]))
    if any("servers" in arm for arm in arms):
        counts = [counted(arm.get("servers", ())) for arm in arms]
        rows.append(("mean staleness, updates", [_number(count.mean_staleness, 1, 2) for count in counts]))
        rows.append(("gradients dropped", [_number(count.dropped, 1, 0) for count in counts]))
    return rows


def _formats(arms: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """A row for each format of numbers, unless it is the usual one in all arms."""
    rows = [(label, [str(arm.get(key, FP32)) for arm in arms]) for label, key in FORMATS]
    return [(label, cells) for label, cells in rows if set(cells) != {FP32}]


def _unit(arm: dict[str, Any]) -> str:
    """What an arm's batches are counted in."""
    return str(arm.get("batch_unit", "examples"))


def _numbers(kinds: Sequence[tuple[str, str, float, int]], arms: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    return [
        (label, [_number(arm.get(key), factor, decimals) for arm in arms]) for label, key, factor, decimals in kinds
    ]


def _metrics(arms: list[dict[str, Any]]) -> list[tuple[str, list[str]]]:
    """A row for each of the task's metrics, and one for what the trivial answers have of it."""
    rows = []
    for name in dict.fromkeys(name for arm in arms for name in arm.get("metrics") or {}):
        rows.append((name, [_metric(name, (arm.get("metrics") or {}).get(name)) for arm in arms]))
        trivial = [arm.get("baseline", {}).get(name) for arm in arms]
        if any(value is not None for value in trivial):
            rows.append(("  of the trivial answer", [_metric(name, value) for value in trivial]))
    return rows


PERCENT = ("chrF", "BLEU", "ROUGE-L")
"""Metrics that go from 0 to 100 by custom; the others are shares, or of their own size."""


def _metric(name: str, value: float | None) -> str:
    return _number(value, 1, 1 if name in PERCENT else 3)


def perplexity(loss: float | None) -> float | None:
    """The perplexity of a loss in nats per token: e to the power of the loss; None if it is not known or too large."""
    return math.exp(loss) if loss is not None and loss < math.log(1e12) else None


@dataclass(frozen=True)
class Counted:
    """The sums of what all servers of an arm have counted.

    Attributes:
        staleness: number of gradients that were applied with each staleness τ.
        dropped: number of gradients that came too late; None if there were no servers.
        mean_staleness: mean staleness of the applied gradients, in updates; None if there were none.
    """

    staleness: dict[int, int]
    dropped: int | None
    mean_staleness: float | None


def has_staleness(summary: Summary) -> bool:
    """Whether a run had servers whose gradients can be stale or come too late: servers that are not synchronous."""
    servers = [server for arm in summary["arms"] for server in arm.get("servers", ())]
    return any(server.get("consistency", "sync") != "sync" for server in servers)


def incomparable(runs: Sequence[Run]) -> str:
    """Makes a sentence that warns if the runs' losses cannot be compared; empty if they can."""
    configs = [run.config() for run in runs]
    kinds = {
        "tasks": {str(run.summary.get("task")) for run in runs},
        "texts": {str(run.summary.get("corpus_sha256")) for run in runs},
        "vocabularies": {str(config["vocabulary"]) for config in configs if "vocabulary" in config},
    }
    different = [name for name, values in kinds.items() if len(values) > 1]
    if not different:
        return ""
    return f"These runs have different {' and '.join(different)}: how high their losses are cannot be compared."


def counted(servers: Sequence[dict[str, Any]]) -> Counted:
    """Add up the statistics of all servers of an arm."""
    staleness: dict[int, int] = {}
    for server in servers:
        for tau, count in server.get("staleness", {}).items():
            staleness[int(tau)] = staleness.get(int(tau), 0) + count
    applied = sum(staleness.values())
    mean = sum(tau * count for tau, count in staleness.items()) / applied if applied else None
    dropped = [server["gradients_dropped"] for server in servers if "gradients_dropped" in server]
    return Counted(staleness, sum(dropped) if dropped else None, mean)


def _names(summary: Summary) -> list[str]:
    return [arm["name"] for arm in summary["arms"]]


def _arm(summary: Summary, name: str) -> dict[str, Any]:
    return next(arm for arm in summary["arms"] if arm["name"] == name)


def _number(value: float | None, factor: float, decimals: int) -> str:
    return "none" if value is None else f"{value * factor:,.{decimals}f}"


def _noise_scale(arm: dict[str, Any]) -> str:
    if "noise_scale" not in arm:
        return "not measured"
    scale = arm["noise_scale"]
    return "not known" if scale is None else f"{scale:,.{0 if scale >= 10 else 1}f}"


def verdict(summary: Summary) -> str:
    """Makes one sentence that says what a run's table shows, and claims no more than its numbers say."""
    arms = {arm["name"]: arm for arm in summary["arms"]}
    clauses = []
    if any(arm["tokens_per_second"] is None for arm in arms.values()):
        return "No worker could say how long it took, so that there is nothing to compare."
    if summary.get("target") is not None:
        return _raced(list(arms.values()), _target(summary))
    large, accumulated, small = (arms.get(name) for name in ("large", "accumulated", "small"))
    if large and accumulated:
        clauses.append(
            f"{large['global_batch']} {_unit(large)} an update end at "
            f"{_gap(accumulated['validation_loss'], large['validation_loss'])} whether computed at once or accumulated "
            f"in {accumulated['accumulation']} micro-batches, which runs at "
            f"{_ratio(accumulated['tokens_per_second'], large['tokens_per_second'])} the speed"
        )
    reference = accumulated or large
    if small and reference and small["updates"] > reference["updates"]:
        moved = (small["bytes_sent_per_update"] or 0.0) * small["updates"]
        before = (reference["bytes_sent_per_update"] or 0.0) * reference["updates"]
        traffic = f", moves {_ratio(moved, before)} the bytes" if before else ""
        clauses.append(
            f"the small batch makes {_ratio(small['updates'], reference['updates'])} the updates from the same tokens"
            f"{traffic}, runs at {_ratio(small['tokens_per_second'], reference['tokens_per_second'])} the speed and "
            f"ends {_difference(small['validation_loss'], reference['validation_loss'])}"
        )
    if not clauses:
        best = max(summary["arms"], key=lambda arm: arm["tokens_per_second"])
        clauses.append(
            f"the arm {best['name']} trains on {best['tokens_per_second']:,.0f} tokens/s, of which communication and "
            f"waiting take {_share(best)} of the time"
        )
    sentence = "; ".join(clauses)
    return f"{sentence[0].upper()}{sentence[1:]}.{_scored(summary)}"


def _scored(summary: Summary) -> str:
    """A sentence about the scores, with a space before it; empty if the task has none."""
    score, trivial = summary.get("score"), summary.get("trivial_answer")
    scored = [arm for arm in summary["arms"] if (arm.get("metrics") or {}).get(score) is not None]
    if not score or not scored:
        return ""
    reached = ", ".join(f"{arm['name']} {_metric(score, arm['metrics'][score])}" for arm in scored)
    baseline = scored[0].get("baseline", {}).get(score)
    compared = f", and {trivial} {_metric(score, baseline)}" if trivial and baseline is not None else ""
    name = score.capitalize() if score.islower() else score
    return f" {name}: {reached}{compared}."


def _target(summary: Summary) -> str:
    """What the arms were trained to, in words."""
    metric, value = summary.get("target_metric"), summary["target"]
    return f"a validation loss of {value:g} nats per token" if metric is None else f"{metric} {value:g}"


def _raced(arms: Sequence[dict[str, Any]], target: str) -> str:
    """One sentence about arms that trained until a target was reached."""
    clauses = []
    for arm in arms:
        if arm.get("updates_to_target") is None:
            clauses.append(f"{arm['name']} did not within {arm['updates']:,} updates")
        elif not arm["updates_to_target"]:
            clauses.append(f"{arm['name']} had before its first update")
        else:
            clauses.append(
                f"{arm['name']} did after {arm['updates_to_target']:,.0f} updates of {arm['global_batch']} "
                f"{_unit(arm)}, {arm['tokens_to_target'] or 0.0:,.0f} tokens and "
                f"{arm['seconds_to_target'] or 0.0:.1f} s"
            )
    return f"Who reached {target}? {'; '.join(clauses)}."


def compared_verdict(summaries: Sequence[Summary]) -> str:
    """Makes one sentence about several runs of the same arms: for each arm, the fastest strategy and the losses."""
    clauses = []
    for name in _names(summaries[0]):
        rows = {summary["strategy"]: _arm(summary, name) for summary in summaries}
        speeds = {strategy: row["tokens_per_second"] or 0.0 for strategy, row in rows.items()}
        fastest, slowest = max(speeds, key=speeds.__getitem__), min(speeds, key=speeds.__getitem__)
        speed = _ratio(rows[fastest]["tokens_per_second"], rows[slowest]["tokens_per_second"])
        losses = [row["validation_loss"] for row in rows.values() if row["validation_loss"] is not None]
        apart = f"{max(losses) - min(losses):.1g}" if losses else "none"
        clauses.append(
            f"{name}: {fastest} is fastest, {speed} the speed of {slowest}, validation losses {apart} nats "
            f"apart{_scores_apart(summaries[0].get('score'), rows)}"
        )
    return "; ".join(clauses) + "."


def _scores_apart(score: str | None, rows: Mapping[str, dict[str, Any]]) -> str:
    """The lowest and the highest score of several strategies' rows, with a comma before them; empty if none has one."""
    scored = {name: row["metrics"][score] for name, row in rows.items() if (row.get("metrics") or {}).get(score)}
    if score is None or not scored:
        return ""
    least, most = min(scored, key=scored.__getitem__), max(scored, key=scored.__getitem__)
    return f", {score} {_metric(score, scored[least])} ({least}) to {_metric(score, scored[most])} ({most})"


def _share(arm: dict[str, Any]) -> str:
    parts = [arm[f"{name}_seconds"] for name in ("communication", "waiting", "update")]
    if None in parts or not parts[-1]:
        return "an unknown part"
    return f"{(parts[0] + parts[1]) / parts[2]:.0%}"


def _ratio(value: float | None, reference: float | None) -> str:
    return "an unknown number of times" if value is None or not reference else f"{value / reference:.3g} ×"


def _gap(one: float | None, other: float | None) -> str:
    if one is None or other is None:
        return "no validation loss that is a number"
    gap = abs(one - other)
    return f"the same validation loss ({gap:.0e} nats apart)" if gap < 1e-3 else f"losses {gap:.3f} nats apart"


def _difference(value: float | None, reference: float | None) -> str:
    if value is None or reference is None:
        return "without a validation loss to compare"
    gap = value - reference
    if abs(gap) < 5e-4:
        return "at the same validation loss"
    return f"{abs(gap):.3f} nats {'higher' if gap > 0 else 'lower'} in validation loss"
