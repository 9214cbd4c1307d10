"""The gradient noise scale: against a quadratic whose gradient and covariance are known, and against plain loops."""

import json
import math
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from jobs import SMALL, quick
from torch import Tensor, nn

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.strategies.strategy import Squares, Strategy
from bigbatch.comm.transports.alone import Alone
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.comm.update import Outcome
from bigbatch.comm.wires.transport import Transport
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.training.history import without_unmeasured
from bigbatch.experiments.training.served.notes import rank_of, record_of, row_of
from bigbatch.tasks.task import Task
from bigbatch.training.batches import BatchPlan
from bigbatch.training.noise import DECAY, NoiseScale, estimates, noise_scale
from bigbatch.training.order import DataOrder
from bigbatch.training.trainer import Trainer, Update

ELEMENTS, EXAMPLES, SEED = 11, 700, 3
SPREAD = np.linspace(0.2, 3.0, ELEMENTS)
"""The square root of the covariance's diagonal."""

EXPECTED = np.linspace(-1.0, 0.7, ELEMENTS)
"""The expected gradient."""

TOKENS = 4
"""In every example."""

GRADIENTS = EXPECTED + SPREAD * np.random.default_rng(11).standard_normal((EXAMPLES, ELEMENTS))
"""Of each example; mean over its tokens."""


class Slopes(nn.Module):
    """Parameters of uneven lengths, one of which is used twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Parameter(torch.zeros(2, 2, dtype=torch.float64))
        self.second = nn.Parameter(torch.zeros(1, dtype=torch.float64))
        self.third = nn.Parameter(torch.zeros(6, dtype=torch.float64))

    def forward(self, gradients: Tensor) -> Tensor:
        first, second, third = gradients.split([4, 1, 6], dim=1)
        # Transposed, so that the gradient that backward hands over is not contiguous.
        used = (first * self.first.t().reshape(-1)).sum() + (second * self.second).sum()
        return used + (0.25 * third * self.third).sum() + (0.75 * third * self.third).sum()


class Known(Task):
    """The loss of an example is linear, so that its gradient is known whatever the parameters are."""

    corpus_sha256, vocabulary_size, example_tokens = "none", 2, TOKENS

    def __init__(self, gradients: np.ndarray = GRADIENTS) -> None:
        self._gradients = torch.from_numpy(gradients)
        self.sizes = {"training": len(gradients), "validation": 1}

    @classmethod
    def prepare(cls, _: object) -> "Known":
        return cls()

    def batch(self, _: str, examples: np.ndarray) -> Tensor:
        return self._gradients[torch.from_numpy(examples)]

    def loss(self, model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        return TOKENS * model(batch), TOKENS * len(batch)


class Ragged(Known):
    """Examples of one token or of seven, so that micro-batches of few have very different numbers of tokens."""

    def __init__(self, gradients: np.ndarray) -> None:
        super().__init__(gradients)
        self.tokens = torch.where(self._gradients[:, 1] > EXPECTED[1], 7, 1)

    def batch(self, _: str, examples: np.ndarray) -> Tensor:
        return torch.cat([self._gradients, self.tokens[:, None]], dim=1)[torch.from_numpy(examples)]

    def loss(self, model: nn.Module, batch: Tensor) -> tuple[Tensor, int]:
        gradients, tokens = batch[:, :-1], batch[:, -1:]
        return model(tokens * gradients), int(tokens.sum())


def sgd(parameters: object) -> torch.optim.Optimizer:
    return torch.optim.SGD(parameters, lr=1e-3)


def updates_on(
    transport: Transport,
    make: type[Strategy],
    micro_batch: int,
    accumulation: int,
    examples: int = EXAMPLES,
    task: Task | None = None,
    **options: bool,
) -> list[Update] | None:
    """Every update of a training with three small buckets."""
    model = Slopes()
    parameters = FlatParameters(model)
    strategy = make(transport)
    strategy.start(parameters, sgd, bucket_bytes=8, with_squares=options.get("measure_noise", False))
    plan = BatchPlan(micro_batch, accumulation, strategy.workers)

    def work() -> list[Update]:
        trainer = Trainer(model, task or Known(), strategy, parameters, plan, examples, SEED, **options)
        trainer.warm_up()
        return list(trainer.updates())

    result = strategy.run(work)
    strategy.close()
    return result


def plain(draws: int, small: int, updates: int, gradients: np.ndarray = GRADIENTS) -> list[tuple[float, float]]:
    """(s, L) of each update by a plain loop; those with gradients that are not finite left out."""
    order, found = DataOrder(len(gradients), SEED), []
    large = draws * small
    for update in range(updates):
        batch = gradients[order.at(range(update * large, (update + 1) * large))]
        each = [float((batch[i * small : (i + 1) * small].mean(0) ** 2).sum()) for i in range(draws)]
        if np.isfinite(batch).all():
            found.append((sum(each) / draws, float((batch.mean(0) ** 2).sum())))
    return found


def averages(squares: list[tuple[float, float]], small: int, large: int) -> tuple[float, float]:
    """(|G|², tr Σ), the weighted means over the updates, written out."""
    weights = [DECAY ** (len(squares) - 1 - i) for i in range(len(squares))]
    squares_of_gradient = [(large * mean - small * each) / (large - small) for each, mean in squares]
    variances = [(each - mean) / (1 / small - 1 / large) for each, mean in squares]
    return tuple(
        sum(w * value for w, value in zip(weights, values, strict=True)) / sum(weights)
        for values in (squares_of_gradient, variances)
    )


def agrees(update: Update, squares: list[tuple[float, float]], small: int, large: int) -> None:
    square, variance = averages(squares, small, large)
    assert update.gradient_square == pytest.approx(square, rel=1e-12)
    assert update.gradient_variance == pytest.approx(variance, rel=1e-12)
    assert update.noise_scale == pytest.approx(variance / square, rel=1e-12)


@pytest.mark.parametrize("overlap", [True, False])
@pytest.mark.parametrize("name", ["ring", "shared", "hierarchical"])
def test_workers_of_an_all_reduce_measure_what_a_plain_loop_does(name, overlap):
    """54 examples an update: the last, with 52, is left out."""
    strategy = STRATEGIES.load(name)
    results = Cluster(3).run(lambda t: updates_on(t, strategy, 9, 2, measure_noise=True, overlap=overlap))
    squares = plain(draws=3, small=18, updates=12)
    for updates in results:
        assert len(updates) == 13
        for number, update in enumerate(updates):
            agrees(update, squares[: number + 1], 18, 54)


@pytest.mark.parametrize("overlap", [True, False])
def test_micro_batches_in_one_process_measure_the_same_as_workers_would(overlap):
    updates = updates_on(Alone(), STRATEGIES.load("ring"), 18, 3, measure_noise=True, overlap=overlap)
    squares = plain(draws=3, small=18, updates=12)
    for number, update in enumerate(updates):
        agrees(update, squares[: number + 1], 18, 54)


def test_every_worker_of_a_server_measures_its_own_micro_batches():
    """Two workers with three micro-batches of four; in the last update the second has too few."""
    strategy = STRATEGIES.load("ps")
    results = Cluster(strategy.ranks_for(2)).run(
        lambda t: updates_on(t, strategy, 4, 3, examples=24 * 6 + 19, measure_noise=True)
    )
    own = plain(draws=3, small=4, updates=14)
    agrees(results[0][-1], own[0:14:2], 4, 12)
    agrees(results[1][-1], own[1:12:2], 4, 12)
    assert results[2] is None


@pytest.mark.parametrize(("ranks", "micro_batch", "accumulation"), [(3, 9, 2), (1, 18, 3)])
def test_an_update_that_is_skipped_does_not_count(ranks, micro_batch, accumulation):
    gradients = GRADIENTS.copy()
    gradients[DataOrder(EXAMPLES, SEED).at(range(60, 61))[0], 7] = np.inf
    results = Cluster(ranks).run(
        lambda t: updates_on(
            t, STRATEGIES.load("ring"), micro_batch, accumulation, task=Known(gradients), measure_noise=True
        )
    )
    squares = plain(draws=3, small=18, updates=12, gradients=gradients)
    assert len(squares) == 11
    for updates in results:
        assert [update.applied for update in updates] == [number != 1 for number in range(13)]
        agrees(updates[1], squares[:1], 18, 54)
        agrees(updates[-1], squares, 18, 54)


@pytest.mark.parametrize("workers", [1, 3])
def test_measuring_changes_nothing_else(workers):
    def losses(measure: bool) -> list[float]:
        results = Cluster(workers).run(lambda t: updates_on(t, STRATEGIES.load("ring"), 9, 2, measure_noise=measure))
        return [update.loss for updates in results for update in updates]

    assert losses(True) == losses(False)


@pytest.mark.parametrize(
    ("name", "ranks", "accumulation"), [("ring", 1, 1), ("ps", 3, 1), ("ps:async", 3, 1), ("ring", 3, 2)]
)
def test_what_is_not_measured_is_nan(name, ranks, accumulation):
    """One draw of the gradient an update; or nobody asked."""
    results = Cluster(ranks).run(
        lambda t: updates_on(t, STRATEGIES.load(name), 9, accumulation, measure_noise=name != "ring" or ranks == 1)
    )
    for update in [update for updates in results if updates is not None for update in updates]:
        assert math.isnan(update.gradient_square)
        assert math.isnan(update.gradient_variance)
        assert math.isnan(update.noise_scale)


@pytest.mark.parametrize(
    ("workers", "micro_batch", "accumulation"),
    quick([(3, 5, 1), (2, 7, 2), (1, 4, 5), (1, 6, 2)], lambda case: case[0] != 2),
)
def test_estimates_are_unbiased(workers, micro_batch, accumulation):
    """Over many fresh draws, within four standard errors of what is known."""
    draws = workers if workers > 1 else accumulation
    small = micro_batch * (accumulation if workers > 1 else 1)
    count, large = 600, draws * small
    z = np.random.default_rng([workers, micro_batch]).standard_normal((count * large, ELEMENTS))
    task = Known(EXPECTED + SPREAD * z)
    make = STRATEGIES.load("ring")
    updates = Cluster(workers).run(
        lambda t: updates_on(t, make, micro_batch, accumulation, count * large, task, measure_noise=True)
    )[0]
    weights = np.cumsum(DECAY ** np.arange(count))
    for name, truth in (("gradient_square", (EXPECTED**2).sum()), ("gradient_variance", (SPREAD**2).sum())):
        smoothed = np.array([getattr(update, name) for update in updates])
        # Back from the weighted means to the single estimates.
        sums = smoothed * weights
        single = sums - DECAY * np.concatenate([[0.0], sums[:-1]])
        error = single.std(ddof=1) / math.sqrt(count)
        assert error < 0.2 * truth
        assert abs(single.mean() - truth) < 4 * error


def test_uneven_numbers_of_tokens_do_not_bias_estimates():
    """Even if a micro-batch has two examples; the mean of each one's own tokens is off by a factor of 2.5 here."""
    z = np.random.default_rng(5).standard_normal((12_000, ELEMENTS))
    task = Ragged(EXPECTED + SPREAD * z)
    tokens, gradients = task.tokens.numpy(), task.tokens.numpy()[:, None] * (EXPECTED + SPREAD * z)
    expected = gradients.sum(0) / tokens.sum()
    # The variance of a ratio's numerator about what its denominator has it be (Cochran 1977, section 2.11).
    variance = np.square(gradients - tokens[:, None] * expected).sum(1).mean() / tokens.mean() ** 2
    updates = updates_on(Alone(), STRATEGIES.load("ring"), 2, 2, len(z), task, measure_noise=True)
    later = updates[len(updates) // 5 :]
    assert np.mean([one.gradient_square for one in later]) == pytest.approx(np.square(expected).sum(), rel=0.25)
    assert np.mean([one.gradient_variance for one in later]) == pytest.approx(variance, rel=0.1)


def test_averages_are_divided_only_after_they_are_made():
    generator = np.random.default_rng(2)
    squares = [tuple(row) for row in generator.uniform(0.5, 3.0, size=(80, 2))]
    noise = NoiseScale()
    assert math.isnan(noise.gradient_square)
    assert math.isnan(noise.gradient_variance)
    for count, (each, mean) in enumerate(squares, start=1):
        noise.add(Squares(each, mean), 5, 15)
        square, variance = averages(squares[:count], 5, 15)
        assert noise.gradient_square == pytest.approx(square, rel=1e-12)
        assert noise.gradient_variance == pytest.approx(variance, rel=1e-12)


def test_estimates_solve_the_two_equations():
    """E‖mean of n‖² = |G|² + tr Σ / n, with n = 8 and n = 24."""
    assert estimates(Squares(2.0 + 12.0 / 8, 2.0 + 12.0 / 24), 8, 24) == pytest.approx((2.0, 12.0), rel=1e-14)


def test_a_scale_is_never_negative():
    assert noise_scale(2.0, 3.0) == 1.5
    for square, variance in ((-2.0, 3.0), (0.0, 3.0), (2.0, -3.0), (-2.0, -3.0), (math.nan, math.nan)):
        assert math.isnan(noise_scale(square, variance))


def test_clipping_comes_after():
    """An update that shortens the gradients in their place measures the same."""

    class Clipping(torch.optim.SGD):
        def step(self, closure: None = None) -> None:
            parameters = [parameter for group in self.param_groups for parameter in group["params"]]
            assert torch.nn.utils.clip_grad_norm_(parameters, 1e-3) > 1e-3
            super().step(closure)

    class Ring(STRATEGIES.load("ring")):
        def prepare(self, optimizer):  # noqa: ARG002 - it has its own
            super().prepare(lambda named: Clipping([p for _, p in named], lr=1e-3))

    for ranks, micro_batch, accumulation in ((3, 9, 2), (1, 18, 3)):
        results = Cluster(ranks).run(
            partial(updates_on, make=Ring, micro_batch=micro_batch, accumulation=accumulation, measure_noise=True)
        )
        for updates in results:
            agrees(updates[-1], plain(draws=3, small=18, updates=12), 18, 54)


@pytest.fixture
def command(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    """Run a command in this process, which saves it a start; its folder is `tmp_path`."""
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))

    def call(*words: object) -> Result:
        arguments = [*map(str, words), *SMALL, "--out", str(tmp_path)]
        return CliRunner().invoke(cli, arguments, standalone_mode=False)

    return call


def arms_of(folder: Path) -> dict[str, dict[str, object]]:
    return {arm["name"]: arm for arm in json.loads((folder / "summary.json").read_text())["arms"]}


@pytest.mark.parametrize(
    ("words", "measured"),
    [
        (("ring", "-n", 1, "--accumulate", 2), {"accumulated"}),
        pytest.param(("ring", "--simulate", 3), {"large", "accumulated", "small"}, marks=pytest.mark.slow),
        pytest.param(("ps", "--simulate", 2), {"accumulated"}, marks=pytest.mark.slow),
    ],
)
def test_a_run_reports_what_it_measured(command, tmp_path, words, measured):
    outcome = command(*words, "--noise-scale", "--batch-size", 24)
    assert outcome.exception is None
    arms = arms_of(tmp_path)
    records = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    for name, arm in arms.items():
        updates = [record for record in records if record["kind"] == "update" and record["arm"] == name]
        assert ("noise_scale" in arm) == (name in measured)
        assert any("noise_scale" in record for record in updates) == (name in measured)
        said = f"The arm {name} cannot measure the noise scale" in outcome.stderr
        assert said == bool(arm["remarks"]) == (name not in measured)
        if name in measured:
            assert arm["gradient_variance"] > 0
            scale = arm["gradient_variance"] / arm["gradient_square"] if arm["gradient_square"] > 0 else None
            assert arm["noise_scale"] == pytest.approx(scale)
            if words[0] != "ps":  # whose workers differ
                # A mean over three workers that have the same number may be off by its last bit.
                assert updates[-1]["noise_scale"] == pytest.approx(arm["noise_scale"], rel=1e-14)
    (row,) = [line for line in outcome.stdout.splitlines() if line.startswith("noise scale, examples")]
    assert row.count("not measured") == 3 - len(measured)


def test_without_the_option_nothing_is_said(command, tmp_path):
    outcome = command("ring", "-n", 1, "--accumulate", 2, "--arms", "accumulated")
    assert outcome.exception is None
    assert "noise" not in outcome.output
    assert not [key for arm in arms_of(tmp_path).values() for key in arm if "noise" in key or "gradient" in key]
    assert "gradient" not in (tmp_path / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    "words",
    [
        ("ring", "-n", 1, "--arms", "large"),
        ("ps", "--simulate", 2, "--arms", "large,small"),
        ("compare", "ring", "ps", "--arms", "large"),
    ],
)
def test_what_no_arm_can_measure_is_refused(command, words):
    with pytest.raises(ConfigurationError, match="--accumulate 2"):
        raise command(*words, "--noise-scale").exception


def test_notes_of_workers_on_a_network_keep_what_was_measured():
    update = Update(3, Outcome.DROPPED, 40, 5.5, 1, 120, 0.5, 0.1, 0.2, 0.1, 99, 2.0, 3.0, 0.2, 1.01, 2.0**15)
    line = {
        "kind": "update",
        **asdict(update),
        "applied": False,
        "noise_scale": 1.5,
        "compute_seconds": 0.3,
        "total_seconds": 1.25,
    }
    assert record_of(row_of(line)) == line
    assert rank_of([(0.0, row_of(line))])["history"]["gradient_variance"] == 3.0
    unmeasured = without_unmeasured({**line, "gradient_square": math.nan})
    assert line.keys() - unmeasured.keys() == {"noise_scale", "gradient_square", "gradient_variance"}
    assert record_of(row_of(unmeasured)) == unmeasured
    assert math.isnan(rank_of([(0.0, row_of(unmeasured))])["history"]["gradient_variance"])
    alike = without_unmeasured({**line, "padding": math.nan})
    assert line.keys() - alike.keys() == {"padding", "imbalance"}
    assert record_of(row_of(alike)) == alike
    unscaled = without_unmeasured({**line, "loss_scale": math.nan})
    assert line.keys() - unscaled.keys() == {"loss_scale"}
    assert record_of(row_of(unscaled)) == unscaled


def test_notes_of_workers_on_a_network_keep_the_score():
    line = {"kind": "validation", "update": 3, "tokens": 120.0, "seconds": 0.5, "loss": 2.5}
    scored = {**line, "metrics": {"chrF": 41.5, "BLEU": 7.0}}
    assert record_of(row_of(scored, "chrF"), "chrF") == {**line, "metrics": {"chrF": 41.5}}
    assert record_of(row_of(line, "chrF"), "chrF") == line
    assert record_of(row_of({**line, "metrics": {"BLEU": 9.5}}, "chrF"), "chrF") == line
    update = row_of({"kind": "update", **asdict(Update(1, Outcome.APPLIED, 40, 5.5, 1, 120, *[0.5] * 4, 99)),
                     "compute_seconds": 0.3, "total_seconds": 1.25})  # fmt: skip
    assert rank_of([(0.0, update), (1.0, row_of(scored, "chrF"))], "chrF")["metrics"] == {"chrF": 41.5}
