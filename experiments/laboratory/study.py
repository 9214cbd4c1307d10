"""Studies: what the figures train on each task, how far, and in which words they tell it."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from bigbatch.tasks import TASKS
from bigbatch.tasks.settings import DataSettings

if TYPE_CHECKING:  # whoever only asks for help must not wait for torch
    from bigbatch.experiments.training.assemble import Assembly
    from bigbatch.models.sizes import ModelSize


@dataclass(frozen=True)
class Reach:
    """How far the sweep to a loss goes, which several figures share.

    Attributes:
        target: the validation loss, which every batch size can reach.
        batches: batch sizes, in examples: below, around and above the critical batch.
        tokens: number of tokens that a training may take, whatever its batch; each example in it adds `MORE_TOKENS`.
        validation_tokens: number of held-out tokens on which the loss is measured.
    """

    target: float
    batches: tuple[int, ...]
    tokens: int
    validation_tokens: int


MORE_TOKENS = 20_000
"""Tokens by which each example in a batch raises what a training may take: large batches take more tokens to a loss."""


@dataclass(frozen=True)
class Study:
    """What the figures train on one task.

    Attributes:
        task: name of the task.
        words: what is learnt, at the start of a sentence.
        of_text: what a token is of a text: a byte, or a token of a vocabulary.
        model_words: which layers are counted, where the model has two stacks of them; else empty.
        options: options of every training about the data, by name.
        rates: Adam's learning rates with which the search starts: below 16 examples a batch, and from there on.
        quick: how far the sweep to a loss goes in its smallest form.
        full: how far it goes otherwise.
        most_validation_tokens: the most held-out tokens on which any training is measured: answers take long.
        equally_long: whether all examples have as many tokens as the option `context` says.
        ragged: name of the task of this kind whose examples have different lengths.
        examples: what its examples are.
        more_data: a file that has more of them, in words.
        chosen: what the user has chosen about the data, by name; None for what the task finds by itself.
    """

    task: str
    words: str
    of_text: str
    model_words: str
    options: Mapping[str, Any]
    rates: tuple[float, float]
    quick: Reach
    full: Reach
    most_validation_tokens: int
    equally_long: bool
    ragged: str
    examples: str
    more_data: str
    chosen: Mapping[str, Any] = field(default_factory=dict)

    @property
    def unit(self) -> str:
        """The unit of the loss."""
        return f"nats per {self.of_text}"

    @property
    def base(self) -> dict[str, Any]:
        """Options of every training on the task: its name, and what the user has chosen."""
        return {"task": self.task, **self.chosen}

    def reach(self, *, quick: bool) -> Reach:
        """How far the sweep to a loss goes."""
        return self.quick if quick else self.full

    def validation_tokens(self, wanted: int) -> int:
        """The number of held-out tokens on which a loss is measured, where the task can afford as many as wanted."""
        return min(wanted, self.most_validation_tokens)

    def check(self) -> None:
        """Refuse early what the user has chosen about the data and the task does not take.

        Raises:
            ConfigurationError: there is such an option.
        """
        from bigbatch.tasks.task import check_taken

        settings = DataSettings.of({name: value for name, value in self.base.items() if value is not None})
        check_taken(TASKS.load(self.task), settings)

    def assembly(self, options: Mapping[str, Any]) -> "Assembly":
        """Prepares the task, from which models of these and the study's own options can be made.

        Raises:
            ConfigurationError: the data cannot be used, or an option is none that the task takes.
        """
        from bigbatch.experiments.training.assemble import Assembly, task_of
        from bigbatch.experiments.training.settings import Settings

        given = {**self.base, **self.options, **options}
        settings = Settings.of({name: value for name, value in given.items() if value is not None})
        return Assembly(settings, task_of(settings.data))

    @property
    def example_tokens(self) -> float:
        """The mean number of tokens that are predicted in an example.

        Raises:
            ConfigurationError: see `assembly`.
        """
        return self.options["context"] if self.equally_long else self.assembly({}).task.example_tokens

    def size(self, options: Mapping[str, Any]) -> "ModelSize":
        """Computes the size of the model that is trained with these options, for simulated time.

        Raises:
            ConfigurationError: see `assembly`.
        """
        sizes = {name: options[name] for name in ("layers", "width", "heads")}
        return self.assembly(sizes).size()


LANGUAGE_MODELLING = Study(
    task="language-modelling",
    words="Byte-level language modelling of real text",
    of_text="byte",
    model_words="",
    options={"context": 32, "vocabulary": 257},
    rates=(1e-3, 2e-3),
    quick=Reach(2.6, (4, 8, 16, 32, 64, 128, 256), 1_000_000, 2048),
    full=Reach(2.3, (2, 4, 8, 16, 32, 64, 128, 256, 512), 2_000_000, 8192),
    most_validation_tokens=20_000,
    equally_long=True,
    ragged="documents",
    examples="documents",
    more_data="a text of more paragraphs",
)

TRANSLATION = Study(
    task="translation",
    words="Translation of short texts",
    of_text="token",
    model_words=" in encoder and decoder each",
    options={"context": 32, "vocabulary": 512},
    rates=(2e-3, 4e-3),
    quick=Reach(3.2, (4, 8, 16, 32, 64, 128, 256), 400_000, 1024),
    full=Reach(2.4, (2, 4, 8, 16, 32, 64, 128, 256, 512), 1_000_000, 2048),
    most_validation_tokens=1024,
    equally_long=False,
    ragged="translation",
    examples="pairs",
    more_data="a file of more pairs",
)

SUMMARISATION = replace(
    TRANSLATION,
    task="summarisation",
    words="Shortening of texts",
    quick=replace(TRANSLATION.quick, target=2.2),
    full=replace(TRANSLATION.full, target=1.5),
    ragged="summarisation",
)

STUDIES: Mapping[str, Study] = MappingProxyType(
    {study.task: study for study in (LANGUAGE_MODELLING, TRANSLATION, SUMMARISATION)}
)
"""Studies by the names of their tasks."""
