"""`bigbatch-exp check`: puts something through the kit that fits it, on simulated ranks and between real ones."""

import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import click

from bigbatch.comm.errors import BigBatchError
from bigbatch.comm.kinds import Flag, Name, Text
from bigbatch.comm.options import Options, option
from bigbatch.experiments.commands.options import Command, Value, takes
from bigbatch.experiments.commands.ranks import RANKS_MEASURED, RankSettings
from bigbatch.experiments.measuring.kits import KITS
from bigbatch.models.settings import ModelSettings
from bigbatch.tasks.settings import DataSettings

if TYPE_CHECKING:  # whoever only asks for help must not wait for torch
    from bigbatch.experiments.measuring.examine import Checks


@dataclass(frozen=True)
class CheckSettings(Options):
    """The options of `check`: what is examined, and where.

    Attributes:
        kind: what the name stands for; None to find out.
        wires: whether to examine it between real ranks, too.
    """

    title: ClassVar[str] = "Check"

    kind: str | None = option(None, Name(lambda: KITS), "What the name stands for.", missing="found out")
    wires: bool = option(True, Flag(), "Examine it between real ranks, too.")


@click.command(cls=Command)
@click.argument("name", type=Value(Text("NAME")))
@takes(CheckSettings, RankSettings, DataSettings, ModelSettings)
def check(settings: CheckSettings, ranks: RankSettings, data: DataSettings, model: ModelSettings, name: str) -> None:
    """Examine an algorithm, strategy, task, model, optimiser or schedule: a registered one, or FILE.py:Name."""
    from bigbatch.comm.transports.launch import detect
    from bigbatch.experiments.commands.output import report
    from bigbatch.experiments.measuring.examine import subject_named
    from bigbatch.experiments.training.conduct import connected
    from bigbatch.experiments.training.launcher import become, launch_command

    subject = subject_named(name, settings.kind, data, model)
    launch = detect()
    if launch.alone:
        print(f"{name}: {subject.kind}, in this process", flush=True)
        failed = told(subject.checks())
        for phrase in subject.left_out:
            line("–", f"not looked at: {phrase}")
        if failed:
            raise BigBatchError(f"{name} has failed {failed} of its checks; it was not tried between real ranks.")
        if not settings.wires:
            line("–", "not looked at: real ranks, as --no-wires says")
            return
        become(launch_command(subject.strategy, ranks.workers or RANKS_MEASURED, sys.argv[1:]))
    with connected(lambda: subject.connect(launch, ranks.deadline), report, lambda _: None) as transport:
        speaking = transport.rank == 0
        if speaking:
            print(f"{name}: {subject.kind}, between {transport.size} real ranks ({transport.wires})", flush=True)
        failed = told(subject.on_wires(transport), speaking=speaking)
        if failed:
            raise BigBatchError(f"{name} has failed {failed} of its checks between real ranks.", everywhere=True)


def told(checks: "Checks", *, speaking: bool = True) -> int:
    """Makes the checks, and prints a line for each as it ends; returns how many have found something."""
    from bigbatch.comm.measuring.conformance import examined

    failed = 0
    for name, finding in examined(checks):
        failed += bool(finding)
        if speaking:
            line("✗" if finding else "✓", f"{name}: {finding}" if finding else name)
    return failed


def line(mark: str, text: str) -> None:
    """Prints a line with a mark before it."""
    print(f"  {mark} {text}", flush=True)
