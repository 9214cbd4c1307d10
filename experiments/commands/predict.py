"""`bigbatch-exp predict`: what a trained model answers to one's own words."""

from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import click

from bigbatch.comm.kinds import File, Text
from bigbatch.comm.options import Options, option
from bigbatch.experiments.commands.options import Command, Value, takes
from bigbatch.tasks.settings import DecodingSettings


@dataclass(frozen=True)
class PredictSettings(Options):
    """The options of `predict`.

    Attributes:
        arm: the arm whose model answers; None for the one with the lowest validation loss.
    """

    title: ClassVar[str] = "Predict"

    arm: str | None = option(
        None, Text("ARM"), "Arm whose model answers.", missing="the one with the lowest validation loss"
    )


@click.command(cls=Command)
@click.argument("run", metavar="RUN", type=Value(File()))
@click.argument("texts", metavar="TEXT...", nargs=-1, required=True)
@takes(PredictSettings, DecodingSettings)
def predict(settings: PredictSettings, decoding: DecodingSettings, run: Path, texts: tuple[str, ...]) -> None:
    """Print what the model that a run has trained answers to each TEXT, a line each.

    It translates or shortens the text, answers the question at its end, or goes on with it, as the task of the RUN
    was.
    """
    from bigbatch.experiments.training.prediction import predict as predicted

    chosen = {name: value for name, value in decoding.flat().items() if value is not None}
    for answer in predicted(run, texts, settings.arm, **chosen):
        click.echo(" ".join(answer.split()))
