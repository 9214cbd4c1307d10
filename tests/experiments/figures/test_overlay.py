"""Figures that lay the curves of several runs over each other."""

import json
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread
from matplotlib.text import Annotation
from pages import done

from bigbatch.experiments.figures.labels import spread
from bigbatch.experiments.figures.overlay import curves_of, overlaid
from bigbatch.experiments.runs.run import Run, names_of, runs_in


def curve(folder: Path, arm: str, kind: str, x: str) -> list[tuple[float, float]]:
    """A line of a figure, from the file alone."""
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [(record[x], record["loss"]) for record in records if (record["arm"], record["kind"]) == (arm, kind)]


@pytest.mark.parametrize("options", [pytest.param([], marks=pytest.mark.slow), ["--by", "seconds"]])
def test_plot_draws_every_arm_of_every_run(runs, tmp_path, options):
    target = tmp_path / "neue Ordner" / "größer.png"
    assert done(["plot", runs, runs / "ring", *options, "--out", target]) == f"{target}\n"
    pixels = (imread(target)[..., :3] * 255).astype(int).reshape(-1, 3)
    colours = set(map(tuple, np.unique(pixels, axis=0)))
    assert {(0x00, 0x72, 0xB2), (0xD5, 0x5E, 0x00), (0x00, 0x9E, 0x73), (0xE6, 0x9F, 0x00)} <= colours


def test_lines_are_what_the_runs_wrote_and_end_at_labels_that_do_not_overlap(runs):
    found = runs_in(runs)
    figure = overlaid(found)
    figure.draw_without_rendering()
    assert len(figure.axes) == 3
    names = [f"{run}, {arm}" for run in ("ring", "naive") for arm in ("large", "accumulated", "small")]
    for axis, x in zip(figure.axes, ("tokens", "update", "seconds"), strict=True):
        drawn = [[(px, py) for px, py in zip(*line.get_data(), strict=True)] for line in axis.get_lines()]
        for run in ("ring", "naive"):
            for arm in ("large", "accumulated", "small"):
                assert curve(runs / run, arm, "validation", x) in drawn
        labels = [child for child in axis.get_children() if isinstance(child, Annotation)]
        assert sorted(label.get_text() for label in labels) == sorted(names)
        boxes = [super(Annotation, label).get_window_extent() for label in labels]
        assert not any(one.overlaps(other) for one in boxes for other in boxes if one is not other)
        assert all(box.x1 <= figure.bbox.x1 and box.x0 >= axis.get_window_extent().x1 for box in boxes)
        assert axis.get_xlabel()
        assert "nats per token" in axis.get_ylabel()
    looks = {(one.colour, str(one.line)) for one in curves_of(found)}
    assert len(looks) == len(names)


def test_many_lines_have_a_legend_and_looks_of_their_own(runs):
    (one, other), arms = runs_in(runs), [{"name": f"_{number} $x"} for number in range(36)]
    metrics = [{**record, "arm": arm["name"]} for arm in arms for record in other.metrics if record["arm"] == "small"]
    many = Run(one.folder, {**one.summary, "arms": arms}, metrics)
    assert len({(curve.colour, str(curve.line)) for curve in curves_of([many])}) == 36
    figure = overlaid([many], "tokens")
    assert [text.get_text() for text in figure.legends[0].get_texts()][:36] == [arm["name"] for arm in arms]
    assert not [child for child in figure.axes[0].get_children() if isinstance(child, Annotation)]


def losing(folder: str, updates: int, training: float | None, first: float | None = None) -> Run:
    """A run with a training loss that is always that, or no number, and a validation loss before the first update."""
    metrics = [{"kind": "validation", "arm": "a", "update": 0, "tokens": 0, "seconds": 0.0, "loss": first}]
    for number in range(1, updates + 1):
        x = {"number": number, "total_tokens": 8 * number, "total_seconds": 0.5 * number}
        metrics.append({"kind": "update", "arm": "a", "loss": training, **x})
        metrics.append({**metrics[0], "update": number, "tokens": 8 * number, "seconds": 0.5 * number, "loss": None})
    return Run(Path(folder), {"strategy": folder, "arms": [{"name": "a"}]}, metrics)


@pytest.mark.parametrize("first", [None, pytest.param(3.0, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    ("training", "scale"), [((None, None, None), "linear"), ((2.0, None, None), "linear"), ((2.0, 1.0, None), "log")]
)
def test_losses_that_are_no_numbers_are_drawn_without_a_warning(training, scale, first):
    """Short and long lines, of which one is a number before the first update at most."""
    lengths = (3, 90, 40)
    runs = [losing(f"run {n}", n, loss, first) for n, loss in zip(lengths, training, strict=True)]
    figure = overlaid(runs)
    figure.savefig(BytesIO(), format="png")
    assert [axis.get_xscale() for axis in figure.axes] == [scale] * 3
    labels = [child for child in figure.axes[0].get_children() if isinstance(child, Annotation)]
    assert len(labels) == (3 if first is not None and scale == "linear" else 0)


def test_a_measured_noise_scale_has_a_panel(runs):
    one, other = runs_in(runs)
    metrics = [
        {**record, "noise_scale": None if number % 5 == 0 else 100.0 + number}
        for number, record in enumerate(one.metrics)
    ]
    *_, panel = overlaid([Run(one.folder, one.summary, metrics), other], "updates").axes
    assert "noise scale" in panel.get_ylabel()
    small = [record for record in metrics if record["arm"] == "small" and record["kind"] == "update"]
    expected = [(record["number"], record["noise_scale"]) for record in small if record["noise_scale"]]
    assert expected in [[(x, y) for x, y in zip(*line.get_data(), strict=True)] for line in panel.get_lines()]


@pytest.mark.parametrize("heights", [[0.5], [0.1, 0.1, 0.1], [0.2, 0.9, 0.95, 1.0, 1.0], [0.0, 0.01, 0.5, 0.505]])
def test_labels_move_apart_and_stay_below_the_top(heights):
    places = spread(heights, 0.1)
    assert np.all(np.diff(places) >= 0.1 - 1e-12)
    assert places[-1] <= 1
    far = np.diff([-1, *heights, 2]) > 0.5
    for number, place in enumerate(places):
        if far[number] and far[number + 1]:
            assert place == heights[number]


def test_runs_are_called_by_their_folders_where_strategies_repeat(tmp_path):
    assert names_of([Path("a/ring"), Path("b/ring"), Path("c")]) == ["a/ring", "b/ring", "c"]
    arms = {"arms": [{"name": "large"}]}
    both = [Run(tmp_path / name, {"strategy": "ring", **arms}, []) for name in ("one", "two")]
    assert [curve.label for curve in curves_of(both)] == ["one", "two"]
    third = Run(tmp_path / "three", {"strategy": "ps", **arms}, [])
    assert [curve.label for curve in curves_of([both[0], third])] == ["ring", "ps"]
