"""The loss or the score at which an arm ends: how it is written, and when it is reached."""

import math

import pytest

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.update import Outcome
from bigbatch.experiments.training.goal import Goal, Goals
from bigbatch.experiments.training.history import History
from bigbatch.experiments.training.settings import Settings
from bigbatch.training.trainer import Update

READ = {
    "3.3": Goal(3.3),
    3: Goal(3.0),
    "chrF:70": Goal(70.0, "chrF"),
    " exact match : 0.5": Goal(0.5, "exact match"),
    "chrF:0": Goal(0.0, "chrF"),
    "mine:-1e-3": Goal(-0.001, "mine"),
    "bits per byte:2.25": Goal(2.25, "bits per byte"),
    "a:b:7": Goal(7.0, "a:b"),
    "chrF:70.123456789": Goal(70.123456789, "chrF"),
    "3.3000000000000003": Goal(3.3000000000000003),
}


@pytest.mark.parametrize("value", READ, ids=str)
def test_a_goal_is_a_loss_or_a_score_and_is_the_same_when_it_was_written_and_read_again(value):
    kind = Goals()
    goal = kind.read(value)
    assert goal == READ[value]
    assert kind.read(goal) == goal
    assert kind.read(kind.write(goal)) == goal
    assert kind.read(str(goal)) == goal
    settings = Settings.of({"target": value})
    assert settings.observation.target == goal
    assert Settings.of(settings.flat()).observation.target == goal


@pytest.mark.parametrize(
    ("value", "words"),
    [
        ("0", "--target cannot be '0'"),
        (-1, "--target cannot be -1"),
        ("nan", "is no finite number"),
        ("inf", "is no finite number"),
        ("good", "is no finite number"),
        (True, "is no finite number"),
        (":70", "names no score before the colon"),
        (" :70", "names no score before the colon"),
        ("chrF:", "is no finite number"),
        ("chrF:high", "is no finite number"),
        ("chrF:nan", "is no finite number"),
        ("chrF:inf", "is no finite number"),
        ("chrF:70%", "is no finite number"),
    ],
)
def test_what_is_no_goal_is_refused_in_a_sentence(value, words):
    with pytest.raises(ConfigurationError) as raised:
        Settings.of({"target": value})
    assert words in str(raised.value)
    assert "\n" not in str(raised.value)


@pytest.mark.parametrize(
    ("goal", "loss", "metrics", "reached"),
    [
        (Goal(3.3), 3.3, {}, True),
        (Goal(3.3), 3.31, {"chrF": 99.0}, False),
        (Goal(70, "chrF"), 9.0, {"BLEU": 99.0, "chrF": 70.0}, True),
        (Goal(70, "chrF"), 0.1, {"chrF": 69.9}, False),
        (Goal(70, "CHRF"), 0.1, {"chrF": 71.0}, True),  # in small or capital letters
        (Goal(70, "chrF"), 0.1, {"BLEU": 99.0}, False),  # it is not measured
        (Goal(-1, "mine"), 0.1, {"mine": -0.5}, True),
        (Goal(2.0, "bits per byte"), 0.1, {"bits per byte": 1.9}, True),  # lower is better
        (Goal(2.0, "bits per byte"), 0.1, {"bits per byte": 2.1}, False),
        (Goal(2.0, "Bits per Byte"), 0.1, {"bits per byte": 1.9}, True),
        (Goal(2.0, "bits per byte"), 0.1, {"Bits per byte": 1.9}, True),
        (Goal(2.0, "bits per byte"), 0.1, {"Bits per byte": 2.1}, False),
        (Goal(70, "chrF"), 0.1, {"chrF": math.nan}, False),
    ],
)
def test_a_goal_is_reached_from_its_better_side(goal, loss, metrics, reached):
    assert (goal.measured(loss, metrics) <= goal.threshold) is reached
    history = History()
    assert not history.ended(goal)  # nothing was measured
    history.validated(1, 10, 1.0, loss, metrics)
    assert history.ended(goal) is reached
    assert not history.ended(None)


def test_an_arm_ends_if_its_loss_is_no_number_whatever_it_trains_to():
    history = History()
    history.validated(1, 10, 1.0, math.nan, {"chrF": 1.0})
    assert history.ended(Goal(3.0))
    assert history.ended(Goal(70, "chrF"))


def test_the_place_of_a_goal_is_interpolated_over_the_logarithm_of_the_place():
    """Between 4 and 16 updates the score goes from 60 to 80: 70 is half of the way on a logarithmic axis, at 8."""
    history = History()
    for update, loss, score in ((0, 6.0, 10.0), (4, 5.0, 60.0), (16, 4.0, 80.0), (64, 4.5, 50.0)):
        history.validated(update, 100 * update, update / 2, loss, {"chrF": score, "bits per byte": loss})
    expected = {"updates_to_target": 8.0, "tokens_to_target": 800.0, "seconds_to_target": 4.0}
    assert history.until(Goal(70, "chrf")) == pytest.approx(expected)
    assert history.until(Goal(4.5)) == history.until(Goal(4.5, "bits per byte")) == pytest.approx(expected)
    assert history.until(None) == {}
    unreached = dict.fromkeys(expected)
    assert history.until(Goal(81, "chrF")) == history.until(Goal(3.9)) == history.until(Goal(1, "BLEU")) == unreached
    assert not history.ended(Goal(70, "chrF"))  # the last one is below again


def test_a_short_last_batch_weighs_little_in_the_mean_padding_and_imbalance():
    """Of 101 examples over four workers the last batch has one: it leaves three of them idle, but hardly counts."""
    history = History()
    for number, (tokens, padding, imbalance) in enumerate([(990, 0.2, 1.0), (10, 0.0, 4.0), (0, math.nan, math.nan)]):
        times = dict.fromkeys(
            ("seconds", "communication_seconds", "total_communication_seconds", "waiting_seconds"), 1.0
        )
        history.add(
            Update(
                number + 1,
                Outcome.APPLIED,
                tokens,
                3.0,
                4,
                tokens,
                bytes_sent=0,
                padding=padding,
                imbalance=imbalance,
                **times,
            )
        )
    assert history.mean_waste("padding") == pytest.approx(0.198)
    assert history.mean_waste("imbalance") == pytest.approx(1.03)
    assert math.isnan(History().mean_waste("padding"))
