"""Translation, summarisation and question answering as a user runs them: tables, files, targets, predictions."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from bigbatch.comm.errors import ConfigurationError
from bigbatch.experiments.commands.main import cli
from bigbatch.experiments.figures.comparison import comparison
from bigbatch.experiments.runs.examples import examples_page
from bigbatch.experiments.runs.run import Run
from bigbatch.experiments.runs.table import compared_verdict, table_of, verdict
from bigbatch.tasks.answers import Answer

pytestmark = pytest.mark.usefixtures("own_cache")

SMALL = [
    *("--layers", "1", "--width", "16", "--heads", "2", "--vocabulary", "300", "--validation-tokens", "100"),
    *("--tokens", "3k", "--batch-size", "16", "--accumulate", "2"),
]


def pairs(path: Path, lines: int = 120) -> Path:
    """A made-up language: every digit becomes a letter, in reverse."""
    rows = [
        (str(number * number), "".join("abcdefghij"[int(digit)] for digit in reversed(str(number * number))))
        for number in range(10, 10 + lines)
    ]
    path.write_text("\n".join("\t".join(row) for row in rows))
    return path


def called(*words: object) -> Result:
    return CliRunner().invoke(cli, [str(word) for word in words])


def refused(*words: object) -> str:
    result = called(*words)
    assert isinstance(result.exception, ConfigurationError), result.output
    return str(result.exception)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, cache: Path) -> Path:
    """A run of translation on a user's own pairs."""
    folder = tmp_path_factory.mktemp("translation")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("BIGBATCH_CACHE", str(cache))
        own = pairs(folder / "pairs.tsv")
        result = called("ring", "--task", "translation", "--text", own, *SMALL, "--out", folder / "run")
    assert result.exit_code == 0, result.output
    (folder / "output").write_text(result.stdout)
    return folder


def summary_of(folder: Path) -> dict[str, Any]:
    summary: dict[str, Any] = json.loads((folder / "run" / "summary.json").read_text())
    return summary


def test_a_table_has_scores_baselines_perplexity_padding_and_imbalance(trained):
    told = (trained / "output").read_text()
    for row in ("chrF", "BLEU", "exact match", "of the trivial answer", "validation perplexity", "padding", "slowest"):
        assert row in told
    assert "chrF: large" in told
    assert "copying the source" in told
    arms = summary_of(trained)["arms"]
    assert all({"chrF", "BLEU", "exact match"} == set(arm["metrics"]) == set(arm["baseline"]) for arm in arms)
    assert all(0 < arm["padding"] < 0.6 and arm["imbalance"] == 1 for arm in arms)  # of a single worker
    large, accumulated, _ = arms
    assert accumulated["padding"] < large["padding"]
    assert accumulated["validation_loss"] == pytest.approx(large["validation_loss"], abs=1e-4)


def test_every_validation_has_scores_and_the_last_are_the_summarys(trained):
    run = Run.read(trained / "run")
    for arm in run.summary["arms"]:
        curve = run.curve(arm["name"], "validation")
        assert all(set(record["metrics"]) == set(arm["metrics"]) for record in curve)
        assert curve[-1]["metrics"] == arm["metrics"]


def test_examples_show_inputs_references_and_outputs_of_each_arm(trained):
    lines = (trained / "run" / "examples.md").read_text().splitlines()
    table = [line for line in lines if line.startswith("|")]
    assert table[0] == "| input | reference | large | accumulated | small |"
    rows = [line.strip("| ").split(" | ") for line in table[2:]]
    held_out = {str(n * n): "".join("abcdefghij"[int(d)] for d in reversed(str(n * n))) for n in range(10, 130)}
    assert 1 < len(rows) <= 20
    assert all(held_out[row[0]] == row[1] for row in rows)


def test_predict_writes_a_line_for_each_text_by_the_best_arm_or_the_one_named(trained):
    run = trained / "run"
    own = called("predict", run, "121", "144", "169")
    assert own.exit_code == 0, own.output
    assert len(own.stdout.splitlines()) == 3
    arms = {arm["name"]: arm["validation_loss"] for arm in summary_of(trained)["arms"]}
    best = min(arms, key=arms.__getitem__)
    assert called("predict", run, "121", "144", "169", "--arm", best).stdout == own.stdout
    assert called("predict", run, "121", "--beam", "1").stdout.strip() == own.stdout.splitlines()[0]
    assert called("predict", run, "121", "--beam", "3", "--length-penalty", "1").exit_code == 0


def test_predictions_are_those_of_the_examples(trained):
    lines = [line for line in (trained / "run" / "examples.md").read_text().splitlines() if line.startswith("|")]
    rows = [line.strip("| ").split(" | ") for line in lines[2:6]]
    told = called("predict", trained / "run", *(row[0] for row in rows), "--arm", "large").stdout.splitlines()
    assert told == [" ".join(row[2].split()) for row in rows]


def test_no_text_of_an_example_is_a_mark_of_markdown():
    answer = Answer("a|b ~~c~~ $d$\nE = $m$", "<i> *f* `g` [h](i) #1 &amp;", "")
    assert examples_page({"large": [answer]}).splitlines()[-1] == (
        r"| a\|b \~\~c\~\~ \$d\$ E = \$m\$ | \<i\> \*f\* \`g\` \[h\](i) \#1 \&amp; |   |"
    )


def test_predict_says_how_to_keep_the_weights(trained, tmp_path):
    copy = shutil.copytree(trained / "run", tmp_path / "run")
    for file in copy.glob("*.pt"):
        file.unlink()
    assert "but for those with --no-weights" in refused("predict", copy, "1")


def test_a_figure_of_a_run_that_does_not_name_its_task(trained):
    run = Run.read(trained / "run")
    nameless = replace(run, summary={name: value for name, value in run.summary.items() if name != "task"})
    assert comparison([run]).get_suptitle().endswith(", translation")
    assert comparison([nameless]).get_suptitle().endswith(" parameters")


def test_predict_refuses_what_is_not_there(trained, tmp_path):
    assert "no arm 'medium'; it has large, accumulated, small" in refused(
        "predict", trained / "run", "1", "--arm", "medium"
    )
    assert "cannot be read" in refused("predict", tmp_path, "1") or "summary" in refused("predict", tmp_path, "1")


def test_predict_notices_other_data_and_damaged_weights(trained, tmp_path):
    copy = tmp_path / "run"
    copy.mkdir()
    for file in (trained / "run").iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    (copy / "model-large.pt").write_bytes(b"PK\x03\x04 nothing")
    assert "damaged" in refused("predict", copy, "1", "--arm", "large")
    (copy / "model-large.pt").unlink()
    assert "no weights of the arm large" in refused("predict", copy, "1", "--arm", "large")
    config = json.loads((copy / "config.json").read_text())
    (copy / "config.json").write_text(json.dumps({**config, "text": str(pairs(tmp_path / "others.tsv", 90))}))
    assert "train again" in refused("predict", copy, "1", "--arm", "small")


def test_an_arm_ends_at_a_score(tmp_path):
    own = pairs(tmp_path / "pairs.tsv")
    words = ["ring", "--task", "translation", "--text", own, *SMALL, "--arms", "small", "--json"]
    result = called(*words, "--target", "chrf:0.1", "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    summary = json.loads(result.stdout)
    assert (summary["target"], summary["target_metric"]) == (0.1, "chrf")
    (arm,) = summary["arms"]
    assert arm["metrics"]["chrF"] >= 0.1
    assert arm["updates_to_target"] is not None
    assert "Who reached chrf 0.1?" in verdict(summary)


def test_a_score_that_is_not_measured_is_refused(tmp_path):
    own = pairs(tmp_path / "pairs.tsv")
    told = refused(
        "ring", "--task", "translation", "--text", own, *SMALL, "--target", "rouge:3", "--out", tmp_path / "r"
    )
    assert "no score 'rouge': it measures chrF, BLEU, exact match" in told


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--source", "de"], "does not take --source"),
        (["--beam", "3"], "does not take --beam"),
        (["--task", "question-answering", "--target-language", "de"], "does not take --target-language"),
        (["--task", "translation", "--length-penalty", "1"], "add --beam 4"),
        (["--task", "summarisation", "--text", "own.tsv", "--source", "fr"], "leave out one of the two"),
        (["--task", "translation", "--model", "decoder"], "takes the model encoder-decoder: leave"),
        (["--model", "encoder"], "takes the model decoder: leave"),
        (["--task", "translation", "--source", "tlh"], "Unknown language 'tlh'"),
        (["--task", "translation", "--target-language", "en"], "two different languages"),
        (["--batch-tokens", "512", "--batch-size", "64"], "leave one of them out"),
        (["--batch-tokens", "3"], "--batch-tokens 4 or more"),
        (["--batch-tokens", "512", "--noise-scale"], "use --batch-size"),
        (["--batch-tokens", "512", "--scaling", "sqrt"], "add --base-batch"),
        (["--positions", "rotary", "--width", "6", "--heads", "2"], "Rotary positions"),
    ],
)
def test_what_does_not_go_together_is_refused_in_a_sentence(words, told, tmp_path):
    assert told in refused("ring", *words, "--tokens", "1k", "--out", tmp_path / "run")


def test_too_long_pairs_are_cut_or_dropped_and_counted(tmp_path):
    own = pairs(tmp_path / "pairs.tsv")
    words = ["ring", "--task", "translation", "--text", own, *SMALL, "--arms", "large", "--context", "5"]
    words += ["--vocabulary", "257"]  # every digit is a token
    cut = called(*words, "--out", tmp_path / "cut")
    dropped = called(*words, "--too-long", "drop", "--out", tmp_path / "dropped")
    assert cut.exit_code == dropped.exit_code == 0, cut.output + dropped.output
    long = sum(len(str(n * n)) > 4 for n in range(10, 130))
    assert f"{long} pairs with a side of over 5 tokens were cut." in cut.stderr
    assert f"{long} pairs with a side of over 5 tokens were left out." in dropped.stderr


def test_batches_counted_in_tokens_are_named_so(tmp_path):
    own = pairs(tmp_path / "pairs.tsv")
    words = ["ring", "--task", "translation", "--text", own, *SMALL[:8], "--tokens", "2k", "--batch-tokens", "200"]
    result = called(*words, "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "global batch, tokens" in result.stdout
    summary = summary_of(tmp_path)
    large, accumulated, small = summary["arms"]
    assert (large["global_batch"], accumulated["global_batch"], small["global_batch"]) == (200, 200, 50)
    assert large["updates"] == accumulated["updates"] < small["updates"]
    assert accumulated["validation_loss"] == pytest.approx(large["validation_loss"], abs=1e-4)
    _, sections = table_of([summary])
    assert dict(sections[0].rows)["global batch, tokens"] == ["200", "200", "50"]
    in_examples = {**summary, "arms": [{**arm, "batch_unit": "examples"} for arm in summary["arms"]]}
    _, sections = table_of([summary, in_examples])
    assert [dict(section.rows)["global batch"] for section in sections] == [
        [f"{batch} tokens", f"{batch} examples"] for batch in (200, 200, 50)
    ]


def test_language_modelling_says_bits_per_byte_and_goes_on_with_a_text(tmp_path):
    words = [
        "--tokens",
        "2k",
        "--validation-tokens",
        "500",
        "--context",
        "16",
        "--vocabulary",
        "300",
        "--arms",
        "large",
    ]
    result = called("ring", *words, *SMALL[:6], "--out", tmp_path / "run")
    assert result.exit_code == 0, result.output
    assert "bits per byte" in result.stdout
    (arm,) = summary_of(tmp_path)["arms"]
    # At most as many tokens as bytes, each of which costs the loss: bits per byte is below bits per token.
    assert 0 < arm["metrics"]["bits per byte"] <= arm["validation_loss"] / 0.6931 * 1.05
    told = called("predict", tmp_path / "run", "Return the")
    assert told.exit_code == 0, told.output
    assert told.stdout.startswith("Return the")
    assert "shorten it" in refused("predict", tmp_path / "run", "Return the " * 40)


def test_a_comparison_says_how_far_the_scores_are_apart(trained):
    one = summary_of(trained)
    other = {**one, "strategy": "ps", "arms": [{**arm, "metrics": {"chrF": 99.0}} for arm in one["arms"]]}
    ring = one["arms"][0]["metrics"]["chrF"]
    assert f"chrF {ring:,.1f} (ring) to 99.0 (ps)" in compared_verdict([one, other])
    without = [{**one, "arms": [{**arm, "metrics": {}} for arm in one["arms"]]}] * 2
    assert "chrF" not in compared_verdict(without)
