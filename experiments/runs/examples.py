"""A run's examples.md: what the trained models write, beside what they should have written."""

from collections.abc import Mapping, Sequence

from bigbatch.tasks.answers import Answer

EXAMPLES = "examples.md"


def examples_page(answers: Mapping[str, Sequence[Answer]]) -> str:
    """Makes a table in Markdown: a row for each held-out example, a column for the model of each arm.

    Args:
        answers: by arm, the answers to the same inputs.
    """
    arms = list(answers)
    rows = [
        [one[0].input, one[0].reference, *(answer.output for answer in one)]
        for one in zip(*(answers[arm] for arm in arms), strict=True)
    ]
    lines = [["input", "reference", *arms], ["---"] * (2 + len(arms)), *([_cell(text) for text in row] for row in rows)]
    table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"# What the models write\n\nHeld-out examples, which no model has seen while it learnt.\n\n{table}\n"


def _cell(text: str) -> str:
    """A text as a cell of a table: on one line, with nothing in it that Markdown or HTML would read as its own."""
    escaped = "".join(f"\\{letter}" if letter in "\\|`*_[]<>&#~$" else letter for letter in " ".join(text.split()))
    return escaped or " "
