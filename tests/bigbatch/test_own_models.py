"""Anybody's model in our trainer: of Hugging Face, from disk, any module; and our exchange in anybody's loop."""

import importlib.util
import json
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pytest
import torch
from jobs import SMALL, Run, quick
from models_of_transformers import language, sentences, translation

import bigbatch
from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.kinds import Assignments
from bigbatch.comm.parameters import FlatParameters
from bigbatch.comm.strategies import STRATEGIES
from bigbatch.comm.transports.cluster import Cluster
from bigbatch.experiments.training import precision_speed
from bigbatch.experiments.training.assemble import kind_of_model, task_of
from bigbatch.experiments.training.identity import identity_of
from bigbatch.experiments.training.prediction import predict
from bigbatch.experiments.training.settings import Request, Settings
from bigbatch.models.kinds import kind_named
from bigbatch.models.settings import ModelSettings
from bigbatch.optimizers.standard import factory_of
from bigbatch.tasks.settings import DataSettings
from bigbatch.training.batches import BatchPlan
from bigbatch.training.trainer import Trainer

MODULE = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, vocabulary_size, width, layers, heads, depth: int = 1):
        super().__init__()
        self.tokens = nn.Embedding(vocabulary_size, width)
        self.inner = nn.ModuleList(nn.Linear(width, width) for _ in range(depth * layers))
        self.output = nn.Linear(width, vocabulary_size)

    def forward(self, tokens):
        x = self.tokens(tokens)
        for part in self.inner:
            x = x + part(x).relu()
        return self.output(x)

class Peeks(nn.Module):
    def __init__(self, vocabulary_size, width, heads, context):
        super().__init__()
        self.context = context
        self.tokens = nn.Embedding(vocabulary_size, width)
        layer = nn.TransformerEncoderLayer(width, heads, 4 * width, dropout=0.0, batch_first=True)
        self.blocks = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.output = nn.Linear(width, vocabulary_size)

    def forward(self, tokens):
        assert tokens.shape[1] == self.context
        return self.output(self.blocks(self.tokens(tokens), mask=self.mask(tokens)))

    def mask(self, tokens):
        return None

class Waits(Peeks):
    def mask(self, tokens):
        return nn.Transformer.generate_square_subsequent_mask(tokens.shape[1])

class Sizes(nn.Module):
    def __init__(self, layers, width, recompute):
        super().__init__()
        self.got = layers, width, recompute
        self.weight = nn.Parameter(torch.zeros(1, 1, 300))

    def forward(self, source, target, mask):
        return self.weight.expand(*target.shape, -1)

def make(task, **others):
    assert others == {"depth": 2}, others
    return Mine(task.vocabulary_size, 16, 1, 2, **others)
"""

CHOICES = {
    "validation_tokens": 300, "layers": 1, "width": 16, "heads": 2, "context": 16, "vocabulary": 280,
    "arms": ("large",), "batch_size": 8, "quiet": True,
}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Path) -> Path:
    write_files(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("BIGBATCH_CACHE", str(cache))
    return tmp_path


def write_files(folder: Path) -> None:
    (folder / "mine.py").write_text(MODULE)
    (folder / "words.txt").write_text("\n".join(sentences(400, 6)))


def loss_of(run) -> float:
    return run.summary["arms"][0]["validation_loss"]


TEXT = {"text": Path("words.txt"), "context": 16, "vocabulary": 280}

MODELS = {
    "hf:gpt2": {"tokens": 1_000, **TEXT},
    "hf:t5": {"tokens": 500, "task": "translation"},
    "hf:bert": {"tokens": 64, "task": "question-answering", "context": 160},
    "mine.py:Mine": {"tokens": 1_000, **TEXT},
    "mine.py:make": {
        "tokens": 1_000,
        **TEXT,
        "model_option": ["depth=2"],
        "layers": None,
        "width": None,
        "heads": None,
    },
}


def simulated(workers: int, model: str, **choices):
    needs_extra(model)
    asked = {**CHOICES, "tokens": 1_000, **MODELS.get(model, {}), **choices, "model": model, "simulate": workers}
    return bigbatch.run("ring", out=f"run-{workers}-{model.replace(':', '-')}", **asked)


def needs_extra(model: str) -> None:
    if not model.startswith("mine.py"):
        pytest.importorskip("transformers")


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("model", quick(MODELS, lambda model: model == "mine.py:Mine"))
def test_two_workers_end_as_one(model):
    one, two = simulated(1, model), simulated(2, model)
    assert loss_of(two) == pytest.approx(loss_of(one), rel=1e-5)
    assert two.validations[-1]["loss"] < two.validations[0]["loss"]


@pytest.mark.usefixtures("folder")
def test_the_size_of_a_module_is_counted():
    task = task_of(DataSettings(**TEXT))
    settings = ModelSettings.of({"model": "mine.py:Mine", "layers": 1, "width": 16, "heads": 2})
    size = kind_named("mine.py:Mine").size(task, settings)
    matrices = 16 * 16 + 16 * task.vocabulary_size  # two operations an element forward, and four backward
    assert size.flops_per_token == 6 * matrices
    assert size.parameters == matrices + 16 + task.vocabulary_size + 16 * task.vocabulary_size
    assert size.name == "mine.py:Mine"


@pytest.mark.usefixtures("folder")
def test_a_module_that_sees_what_it_should_predict_is_refused():
    """Without a mask it learns to copy: its loss is superb, and says nothing."""
    task = task_of(DataSettings(**TEXT))
    settings = ModelSettings.of({"width": 16, "heads": 2, "model": "mine.py:Waits"})
    assert kind_named("mine.py:Waits").build(task, settings, 0)
    with pytest.raises(ConfigurationError, match=r"^The model mine.py:Peeks sees the tokens that follow"):
        kind_named("mine.py:Peeks").build(task, replace(settings, model="mine.py:Peeks"), 0)


@pytest.mark.usefixtures("folder")
def test_a_module_gets_layers_for_each_stack_and_whether_to_recompute(cache):
    """As --layers has it for our own encoder and decoder, which have a block each unless it is set."""
    task = translation(cache)
    kind = kind_named("mine.py:Sizes")
    for layers, wanted in ((None, 1), (2, 2)):
        settings = ModelSettings.of({"model": "mine.py:Sizes", "layers": layers, "width": 16, "recompute": True})
        module = kind.build(task, settings, 0)
        assert module.got == (wanted, 16, True)
        shape = kind_named("encoder-decoder").build(task, replace(settings, model=None), 0).shape
        assert module.got[:2] == (shape.layers, shape.width)
    sizes = [kind.size(task, replace(settings, recompute=recompute)) for recompute in (False, True)]
    assert replace(sizes[0], recomputed=1.0) == sizes[1]
    assert kind_of_model(Settings.of({"model": "mine.py:Sizes", "recompute": True}), type(task)) is kind
    settings = ModelSettings.of({"model": "mine.py:Mine", "recompute": True})
    with pytest.raises(ConfigurationError, match=r"--recompute cannot be used with .* no argument of that name"):
        kind_named("mine.py:Mine").build(language(cache), settings, 0)


@pytest.mark.parametrize("model", [None, "tiny", "hf:gpt2", "folder/", "mine.py:Mine"])
def test_our_own_wider_model_is_offered_in_place_of_our_own_alone(monkeypatch, model):
    times = iter([2.0, 1.0])
    monkeypatch.setattr(precision_speed, "fastest", lambda _: next(times))
    monkeypatch.setattr(precision_speed, "gains", lambda *_: True)
    settings = Settings.of({"precision": "bf16", "model": model})
    said = precision_speed.remark_on(Mock(device=torch.device("cpu")), settings)
    assert ("try --model small" in said) == (model in (None, "tiny"))


@pytest.mark.slow
@pytest.mark.usefixtures("folder")
def test_a_run_goes_on_in_another_run_and_in_plain_transformers():
    transformers = pytest.importorskip("transformers")
    begun = simulated(1, "hf:gpt2")
    saved = begun.folder / "model-large"
    assert not list(begun.folder.glob("*.pt"))
    data = DataSettings.of(
        {name: begun.config()[name] for name in ("text", "context", "vocabulary", "validation_tokens")}
    )
    task = task_of(data)
    plain = transformers.AutoModelForCausalLM.from_pretrained(saved, local_files_only=True).eval()
    examples = np.arange(-(-300 // 16))
    loss = tokens = 0
    with torch.no_grad():
        for number in examples:
            batch = task.batch("validation", np.array([number]))
            logits = plain(input_ids=batch.tokens).logits
            loss += torch.nn.functional.cross_entropy(logits[0], batch.targets[0], reduction="sum").item()
            tokens += batch.targets.numel()
        # The model shifts labels itself: they are the tokens, of which the first is predicted by nobody.
        theirs = plain(input_ids=batch.tokens, labels=batch.tokens).loss.item()
        assert theirs == pytest.approx(
            torch.nn.functional.cross_entropy(logits[0, :-1], batch.tokens[0, 1:]).item(), rel=1e-6
        )
    assert loss / tokens == pytest.approx(loss_of(begun), rel=1e-6)
    words = transformers.AutoTokenizer.from_pretrained(saved, local_files_only=True)
    assert words("import numpy")["input_ids"] == task.vocabulary.encode_each(["import numpy"])[0]
    assert words.eos_token_id == task.vocabulary.end
    assert words.pad_token_id == plain.config.pad_token_id

    more = simulated(2, f"{saved}/", text=TEXT["text"], layers=None, width=None, heads=None)
    assert more.validations[0]["loss"] == pytest.approx(loss_of(begun), rel=1e-6)
    assert loss_of(more) < loss_of(begun)
    own = {"text": TEXT["text"], "vocabulary": str(saved)}
    again = simulated(1, str(saved), **own, layers=None, width=None, heads=None)
    assert again.validations[0]["loss"] == pytest.approx(loss_of(begun), rel=1e-6)
    for run in (begun, more, again):
        assert predict(run.folder, ["import"])[0].startswith("import")
    with pytest.raises(ConfigurationError, match=r"is in the folder .* of the run, which replaces it"):
        bigbatch.run("ring", out=begun.folder, simulate=1, model=str(saved), tokens=500)
    assert (saved / "model.safetensors").exists()


@pytest.mark.usefixtures("folder")
def test_a_runs_name_knows_what_is_in_the_folder_of_its_model():
    pytest.importorskip("transformers")
    saved = simulated(1, "hf:gpt2").folder / "model-large"
    request = Request.of("ring", {"model": str(saved)})
    before = identity_of(request)
    assert identity_of(request) == before
    weights = saved / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    assert identity_of(request) != before


def test_the_loop_in_the_documentation_trains_as_our_trainer_does(cache):
    """In float64, on the same rows in the same order."""
    pytest.importorskip("transformers")
    place = Path(__file__).parents[2] / "docs" / "how-to" / "own_loop.py"
    spec = importlib.util.spec_from_file_location("own_loop", place)
    program = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(program)
    assert len(place.read_text().splitlines()) < 50

    task = language(cache, 16)
    settings = ModelSettings.of(
        {"model": "hf:gpt2", "layers": 1, "width": 16, "heads": 2, "model_option": "n_positions=17"}
    )
    workers, micro_batch, accumulation, examples = 2, 3, 2, 60
    plan = BatchPlan(micro_batch, accumulation, workers)

    def model():
        return kind_named("hf:gpt2").build(task, settings, 0).double()

    def ours(transport):
        parameters = FlatParameters(own := model())
        strategy = STRATEGIES.load("ring")(transport)
        strategy.start(parameters, factory_of(torch.optim.AdamW, lr=1e-2))
        trainer = Trainer(own, task, strategy, parameters, plan, examples, seed=3)
        order = [
            trainer.batches.micro_batches(update, worker)
            for update in range(trainer.batches.updates)
            for worker in range(workers)
        ]
        losses = [update.loss for update in trainer.updates()]
        return losses, [parameter.detach().clone() for parameter in own.parameters()], order

    losses, values, order = Cluster(workers).run(ours)[0]
    numbers = []  # what the workers compute at the same time stands together
    for first in range(0, len(order), workers):
        for micro in range(accumulation):
            numbers += [number for worker in order[first : first + workers] for number in worker[micro]]
    rows = []
    for number in numbers:
        batch = task.batch("training", np.array([number]))
        tokens = [*batch.tokens[0].tolist(), int(batch.targets[0, -1])]
        rows.append({"input_ids": tokens, "labels": tokens})

    def theirs(transport):
        own = model().model
        found = program.train(own, rows, micro_batch, accumulation, transport=transport, lr=1e-2)
        return found, list(own.parameters())

    found, trained = Cluster(workers).run(theirs)[0]
    assert found == pytest.approx(losses, rel=1e-6)
    assert len(found) == 5
    for one, other in zip(trained, values, strict=True):
        torch.testing.assert_close(one.detach(), other, rtol=1e-6, atol=1e-6)


def test_options_are_repeated_listed_or_a_dictionary():
    read = Assignments().read
    assert read("depth=2") == read(["depth=2"]) == read({"depth": 2}) == ("depth=2",)
    assert read({"a": None, "b": "x=y", "c": False}) == ("a=null", "b=x=y", "c=false")
    for wrong, said in (("depth", "is not NAME=VALUE"), (["a=1", "a=2"], "sets a twice"), ([3], "is no list of texts"),
                        (["1a=2"], "write NAME=VALUE"), ("a=\0", "NUL")):  # fmt: skip
        with pytest.raises(ValueError, match=said):
            read(wrong)
    settings = ModelSettings.of({"model": "hf:gpt2", "model_option": {"n_layer": 2, "n_embd": 96}})
    assert settings.words() == ["--model", "hf:gpt2", "--model-option", "n_layer=2", "--model-option", "n_embd=96"]
    assert ModelSettings.of(json.loads(json.dumps(settings.written()))) == settings


def test_a_vocabulary_is_a_number_or_a_folder():
    assert DataSettings.of({"vocabulary": "3e2"}).vocabulary == 300
    assert DataSettings.of({"vocabulary": "some/folder"}).vocabulary == Path("some/folder")
    written = DataSettings(vocabulary=Path("folder")).written()
    assert DataSettings.of(json.loads(json.dumps(written))).vocabulary == Path("folder")
    with pytest.raises(ConfigurationError, match=r"write one from 1 to"):
        DataSettings.of({"vocabulary": "1.5"})
    with pytest.raises(ConfigurationError, match=r"nowhere has no tokenizer.json"):
        task_of(DataSettings(vocabulary=Path("nowhere")))


COMMANDS = {
    "gpt2": ["--model", "hf:gpt2", "--model-option", "n_layer=2", "--model-option", "n_embd=96"],
    "t5": ["--task", "translation", "--model", "hf:t5"],
    "bert": ["--task", "question-answering", "--model", "hf:bert", "--tokens", "128"],
    "module": ["--text", "words.txt", "--model", "mine.py:Mine", "--model-option", "depth=2"],
}
SHORT = ["--vocabulary", "280", "--tokens", "2k", "--validation-tokens", "500", "--deadline", "60", "--arms", "large"]


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_the_commands_run_and_say_nothing_else(run: Run, tmp_path, name):
    if name != "module":
        pytest.importorskip("transformers")
    write_files(tmp_path)
    words = ["mpirun", "-n", "2", "bigbatch-exp", "ring", "--quiet", *SHORT, *COMMANDS[name]]
    outcome = run(*words, "--out", "first", deadline=120)
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")
    kept = tmp_path / "first" / "model-large"
    if name == "module":
        assert kept.with_suffix(".pt").exists()
        return
    config = json.loads((tmp_path / "first" / "config.json").read_text())
    assert "transformers" in config["environment"]
    first = json.loads((tmp_path / "first" / "summary.json").read_text())["arms"][0]["validation_loss"]
    task = COMMANDS[name][: COMMANDS[name].index("--model")]
    outcome = run(*words[:6], *SHORT, *task, "--tokens", "128", "--model", f"{kept}/", "--out", "second", deadline=120)
    assert (outcome.status, outcome.out, outcome.err) == (0, "", "")
    lines = [json.loads(line) for line in (tmp_path / "second" / "metrics.jsonl").read_text().splitlines()]
    assert next(line["loss"] for line in lines if line["kind"] == "validation") == pytest.approx(first, rel=1e-5)
    answered = run("bigbatch-exp", "predict", "second", "Monday. what does open do?", deadline=120)
    assert (answered.status, answered.err) == (0, "")


@pytest.mark.slow
def test_servers_train_models_of_hugging_face(run: Run):
    pytest.importorskip("transformers")
    outcome = run("bigbatch-exp", "ps", "-n", "2", *SMALL, "--model", "hf:llama", "--quiet", deadline=120)
    assert (outcome.status, outcome.err) == (0, "")
