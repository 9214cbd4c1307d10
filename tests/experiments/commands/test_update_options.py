"""The options of an update: what each does in a training, and what is refused before one begins."""

import json

import pytest
from jobs import SMALL
from rates import rates_in

from bigbatch.comm.errors import BigBatchError, ConfigurationError
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.training.assemble import optimizer_of
from bigbatch.experiments.training.conduct import conduct_alone
from bigbatch.experiments.training.settings import Request, Settings
from bigbatch.training.batches import BatchPlan


@pytest.mark.parametrize(("scaling", "start"), [("linear", 0.005), ("sqrt", 0.0), ("none", 0.0)])
def test_an_experiments_warm_up_starts_as_its_rule_has_it(scaling, start):
    """A rate of 0.005 for 16 examples; every one of 32 steps of warm-up is as much more than the one before."""
    rule = {"scaling": scaling, "base_batch": 16 if scaling != "none" else None}
    settings = Settings.of({"optimizer": "torch.optim:SGD", "learning_rate": 0.005, "warmup": 32, **rule})
    make = optimizer_of(settings, BatchPlan(8, 2, workers=4), 40, STRATEGIES.load("ring"))
    rates = rates_in(make, 33)
    peak = 0.005 * {"linear": 4, "sqrt": 2, "none": 1}[scaling]
    expected = [start + (peak - start) * min(step, 32) / 32 for step in range(1, 34)]
    assert rates == pytest.approx(expected, rel=1e-9)


@pytest.fixture
def arms_of(tmp_path, cache, monkeypatch):
    """Simulates two workers, and returns the arms of the summary."""
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))
    monkeypatch.setattr("bigbatch.experiments.api.draw", lambda *_: None)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(" ".join(str(number**2) for number in range(20_000)))

    def run(*words):
        out = tmp_path / f"run-{len(list(tmp_path.iterdir()))}"
        strategy, *options = words
        small = [*SMALL, "--text", "text.txt", "--simulate", "2", "--quiet", "--out", str(out)]
        cli([strategy, *small, *options], standalone_mode=False)
        return json.loads((out / "summary.json").read_text())["arms"]

    return run


@pytest.mark.parametrize(
    ("words", "same"),
    [
        ("ring --schedule constant --warmup 0 --scaling none", True),
        ("ring --schedule linear --warmup 2", False),
        ("ring --schedule wsd", False),
        ("ring --scaling linear", False),
        ("ring --scaling sqrt --base-batch 16", True),
        ("ps --optimizer lamb --schedule noam --warmup 2 --clip 0.5", False),
        ("ring --optimizer lars --learning-rate 5 --clip 10", False),
    ],
)
def test_every_option_trains(arms_of, words, same):
    """The small arm of two workers has 16 examples for an update."""
    (without,) = arms_of("ring", "--arms", "small")
    (arm,) = arms_of(*words.split(), "--arms", "small")
    assert arm["global_batch"] == 16
    assert (arm["validation_loss"] == without["validation_loss"]) == same
    assert arm["validation_loss"] < 6


OWN = """
def own(step, steps, warm_up):
    with open("steps.txt", "a") as file:
        print(step, steps, warm_up, file=file)
    return 1 / step
"""


def test_a_schedule_of_ones_own_hears_of_every_step_of_an_asynchronous_server(arms_of, tmp_path):
    """Two workers make two steps for each of an arm's updates, and warm up over two."""
    (tmp_path / "own.py").write_text(OWN)
    words = ("ps:async", "--schedule", "own.py:own", "--warmup", "1", "--arms", "small,large")
    arms = arms_of(*words)
    steps = [2 * arm["updates"] for arm in arms]
    lines = [tuple(map(int, line.split())) for line in (tmp_path / "steps.txt").read_text().splitlines()]
    made = [arm["servers"][0]["versions"] for arm in arms]
    for total, count in zip(steps, made, strict=True):
        heard, beforehand = [step for step, of, _ in lines if of == total], [*range(1, total + 1), total]
        while heard[: total + 1] == beforehand:  # whoever makes an optimiser looks at all factors first
            heard = heard[total + 1 :]
        assert heard == list(range(1, count + 1))
    assert {warm_up for *_, warm_up in lines} == {2}
    # Of the last, short batch a worker may have had nothing.
    assert all(total - 1 <= count <= total for total, count in zip(steps, made, strict=True))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ("ring --simulate 2 --schedule cosin", "Unknown schedule 'cosin' (did you mean 'cosine'?)"),
        ("ring --simulate 2 --scaling cubic", "Unknown scaling rule 'cubic'"),
        ("ring --simulate 2 --base-batch 32", "--base-batch 32 says from which batch to scale"),
        ("ring --simulate 2 --scaling sqrt --base-batch 6", "k = 64 / 6 = 10.6667 with β = 0.9"),
        ("ps serve --scaling sqrt --base-batch 6", "The largest batch for an update is 59 examples"),
        ("ring --simulate 2 --warmup 3", "A warm-up of 3 steps of the optimiser is longer than an arm, which has 2"),
        ("ps --simulate 2 --servers 2 --optimizer lamb", "lamb looks at the whole"),
        ("ps --simulate 2 --colocated --clip 1", "--clip looks at the whole"),
        ("ps serve --part 1/2 --clip 1", "--clip looks at the whole"),
        ("ps:async --simulate 2 --target 3", "--target 3 asks how long all workers take, but those of ps:async are"),
        ("ps --consistency ssp -n 2 --target 3", "those of ps are not in step"),
        ("compare ring ps:backup -n 2 --target 3", "those of ps:backup are not in step"),
        ("compare ps:async ring -n 4 --batch-size 640 --scaling sqrt", "k = 640 / 64 = 10"),
    ],
)
def test_what_cannot_be_is_refused_before_it_begins(tmp_path, monkeypatch, cache, words, sentence):
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.txt").write_text(" ".join(str(number**2) for number in range(20_000)))
    monkeypatch.setattr("bigbatch.experiments.training.launcher.become", None)  # no process is started
    monkeypatch.setattr("bigbatch.experiments.training.launcher.start", None)
    own = [*(SMALL[:-2] if "serve" in words else SMALL), "--text", "text.txt"]
    with pytest.raises(BigBatchError) as refused:
        cli([*words.split(), *own], standalone_mode=False)
    assert sentence in str(refused.value)
    assert not list(tmp_path.glob("**/summary.json"))


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("ring", {"base_batch": 32}), "--base-batch 32 says from which batch to scale"),
        (("ring", {"arms": "large", "noise_scale": True}), "every arm of large has only one"),
        (("ps:async", {"target": 3}), "those of ps:async are not in step"),
    ],
)
@pytest.mark.parametrize("simulated", [{}, {"simulate": 1}])
def test_a_point_is_refused_where_its_command_is(tmp_path, monkeypatch, cache, words, sentence, simulated):
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))
    with pytest.raises(ConfigurationError) as refused:
        conduct_alone(Request.of(words[0], {**words[1], **simulated}), tmp_path / "run")
    assert sentence in str(refused.value)
    assert not (tmp_path / "run").exists()


def test_a_comparison_checks_each_strategy_by_its_own_steps(tmp_path, monkeypatch):
    """A quarter of 640 examples is behind an asynchronous step: k = 2.5, of less than 10."""
    monkeypatch.chdir(tmp_path)

    def reached(request, *_, **__):
        raise BigBatchError(f"would run {request.strategy}")

    monkeypatch.setattr("bigbatch.experiments.api.conduct", reached)
    for names in (("ps:async",), ("ps:backup:3", "ps:async")):
        with pytest.raises(BigBatchError, match=f"would run {names[0]}"):
            cli(["compare", *names, "-n", "4", "--batch-size", "640", "--scaling", "sqrt"], standalone_mode=False)


@pytest.mark.parametrize("name", ["ps:async", "ps:backup:1"])
def test_a_step_is_scaled_by_the_gradients_behind_it(arms_of, name):
    """Of the 16 examples of the small arm each of two workers has 8, and one's gradient makes a step."""
    losses = []
    for words in ("", "--scaling sqrt --base-batch 8", "--scaling sqrt --base-batch 16"):
        (arm,) = arms_of(name, *words.split(), "--arms", "small")
        losses.append(arm["validation_loss"])
    assert losses[0] == losses[1] != losses[2]
