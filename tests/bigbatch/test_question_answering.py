"""Question answering: spans go from characters to tokens and back, and the best span lies in the passage."""

import itertools
import json
import math

import numpy as np
import pytest
import torch
from torch import nn

import bigbatch.tasks.question_answering as subject
from bigbatch.comm.errors import ConfigurationError
from bigbatch.models.encoder import Encoder
from bigbatch.models.settings import ModelSettings
from bigbatch.tasks.question_answering import QuestionAnswering, divided
from bigbatch.tasks.questions import Question, Questions, function_questions, read_questions
from bigbatch.tasks.settings import DataSettings
from bigbatch.tasks.vocabulary import learn_vocabulary


def task_of(questions, cache, **settings):
    return QuestionAnswering(questions, learn_vocabulary(questions.corpus(), 1024, cache), DataSettings(**settings))


@pytest.fixture(scope="module")
def questions(cache):
    found = function_questions(cache)
    return Questions(found.name, found.training[:2_000], found.validation[:200])


@pytest.fixture(scope="module")
def task(questions, cache):
    return task_of(questions, cache)


def a_question(passage, answer, question="what is it?"):
    start = passage.index(answer)
    return Question(passage, question, start, start + len(answer))


SHORT = a_question("One. Two three.", "Two")
ACCENTS = a_question("Él comió piñas 🍍 y peras. Nada más.", "piñas 🍍")


class Oracle(nn.Module):
    """A model whose scores are made by hand: those given, padded with zeros."""

    def __init__(self, scores):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))
        self.made = scores

    def forward(self, tokens, *_):
        scores = torch.zeros(*tokens.shape, 2)
        for row, cells in enumerate(self.made):
            for place, score in cells.items():
                scores[row, place[0], place[1]] = score
        return scores


def test_spans_go_to_tokens_and_back(task, questions):
    for split, asked in (("training", questions.training), ("validation", questions.validation)):
        batch = task.batch(split, np.arange(len(asked)))
        assert batch.references == tuple(one.answer for one in asked)
        for row, one in enumerate(asked):
            start, stop = batch.targets[row].tolist()
            assert batch.passage[row, start : stop + 1].all()
            assert batch.passages[row].answer((start, stop)) == one.answer
            assert batch.inputs[row] == f"{one.passage} {one.question}"


def test_characters_of_several_bytes(cache):
    """With 257 tokens every byte is a token; a character of four bytes is four of them."""
    questions = Questions("accents", (ACCENTS,), (SHORT,))
    task = QuestionAnswering(questions, learn_vocabulary(questions.corpus(), 257, cache), DataSettings())
    batch = task.batch("training", np.array([0]))
    start, stop = batch.targets[0].tolist()
    assert batch.passages[0].answer((start, stop)) == "piñas 🍍"
    assert stop - start + 1 == len("piñas 🍍".encode())


def test_an_answer_that_is_part_of_a_token_is_judged_by_itself(cache):
    """The best span is then wider than the answer, and the reference must not be widened with it."""
    inside = a_question("abcabc abcabc abcabc", "bca")
    batch = task_of(Questions("parts", (inside,) * 2, (inside,)), cache).batch("validation", np.array([0]))
    assert batch.references == ("bca",)
    assert batch.passages[0].answer(tuple(batch.targets[0].tolist())) == "abcabc"


def test_a_name_has_the_same_tokens_in_the_question_and_in_the_passage(task, questions):
    """Where it stands first in the passage, too, although no space is before it there."""
    names = [one.question.removeprefix("what does ").removesuffix(" do?") for one in questions.training]
    first = [row for row, one in enumerate(questions.training) if one.start == len(f"{names[row]}: ")]
    assert len(first) > 500
    for row, passage in zip(first, task.batch("training", np.array(first)).passages, strict=True):
        (name,) = task.vocabulary.encode_each([f" {names[row]}"])
        assert passage.tokens[passage.first :][: len(name)] == name
        assert passage.tokens[2 : 2 + len(name)] == name


def test_the_parts_of_a_sequence(task, questions):
    """Question, end, passage, end, padding."""
    batch = task.batch("training", np.arange(20))
    end = task.vocabulary.end
    for row in range(20):
        tokens, length = batch.tokens[row].tolist(), int(batch.mask[row].sum())
        ends = [place for place in range(length) if tokens[place] == end]
        assert len(ends) == 2
        assert ends[1] == length - 1
        assert batch.passage[row].nonzero().flatten().tolist() == list(range(ends[0] + 1, ends[1]))
        asked, told = tokens[: ends[0]], tokens[ends[0] + 1 : ends[1]]
        assert task.vocabulary.decode(np.array(asked)) == questions.training[row].question
        assert task.vocabulary.decode(np.array(told)) == f" {questions.training[row].passage}"
        assert task.lengths("training")[row] == length


def test_a_batch_has_the_losses_of_its_parts(task):
    """Padding changes nothing."""
    model = Encoder.build(task, ModelSettings(), seed=0).double()
    lengths = task.lengths("training")[:, 0]
    examples = np.array([lengths.argmin(), lengths.argmax(), 0, 1])
    loss, targets = task.loss(model, task.batch("training", examples))
    alone = [task.loss(model, task.batch("training", examples[[row]])) for row in range(4)]
    assert targets == 8 == sum(count for _, count in alone)
    assert loss.item() == pytest.approx(sum(one.item() for one, _ in alone), rel=1e-12)


@pytest.mark.parametrize("positions", ["learnt", "sinusoidal", "rotary"])
def test_loss_and_gradient_of_a_plain_loop(task, positions):
    """The definition: -log softmax of w·x + xᵀWq / √width over the passage, at the first and the last token."""
    model = Encoder.build(task, ModelSettings(positions=positions), seed=1).double()
    torch.manual_seed(0)
    nn.init.normal_(model.likeness.weight, std=0.1)
    batch = task.batch("training", np.arange(5))
    loss, _ = task.loss(model, batch)
    loss.backward()
    found = {name: parameter.grad.clone() for name, parameter in model.named_parameters()}
    model.zero_grad()
    width, total = model.shape.width, 0.0
    for row, encoded in enumerate(batch.passages):
        tokens = torch.tensor([encoded.tokens])
        inside = list(range(encoded.first, len(encoded.tokens) - 1))
        vectors = model.tokens(tokens) + torch.stack(
            [model.segments.weight[int(place in inside)] for place in range(len(encoded.tokens))]
        )
        x = model.norm(model.blocks(model.positions(vectors)))[0]
        question = sum(x[place] for place in range(len(x)) if place not in inside) / (len(x) - len(inside))
        for kind in range(2):
            matrix = model.likeness.weight[kind * width : (kind + 1) * width]
            weight, bias = model.scores.weight[kind], model.scores.bias[kind]
            scores = {place: x[place] @ weight + bias + x[place] @ matrix @ question / width**0.5 for place in inside}
            right = scores[batch.targets[row, kind].item()]
            total = total + torch.logsumexp(torch.stack(list(scores.values())), 0) - right
    total.backward()
    assert loss.item() == pytest.approx(total.item(), rel=1e-12)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.grad, rtol=1e-9, atol=1e-11)


def test_the_best_span_by_enumeration(task):
    """Of all spans in the passage that do not end before they start and are not too long, the most likely one."""
    batch = task.batch("validation", np.arange(30))
    scores = torch.randn(*batch.tokens.shape, 2, generator=torch.Generator().manual_seed(0))
    scores[:, :, 1] -= torch.arange(scores.shape[1]) / 5  # ends come early: the two best would often be crossed
    crossed = 0

    class Given(Oracle):
        def forward(self, *_):
            return scores.clone()

    answers = task.answers(Given(()), batch)
    for row, passage in enumerate(batch.passages):
        inside = range(passage.first, len(passage.tokens) - 1)
        crossed += max(inside, key=scores[row, :, 1].__getitem__) < max(inside, key=scores[row, :, 0].__getitem__)
        spans = [(a, b) for a, b in itertools.product(inside, inside) if 0 <= b - a < subject.LONGEST_ANSWER]
        best = max(spans, key=lambda span: scores[row, span[0], 0] + scores[row, span[1], 1])
        assert answers[row] == passage.answer(best)
    assert crossed > 5


def test_the_longest_answer(task):
    """A span of 31 tokens is not taken, however likely its ends are; Devlin et al. evaluate with 30."""
    long = " ".join(["word"] * 40)
    (passage,) = task._encoded([("what?", f"Start. {long}")])
    first, last = passage.first + 2, passage.first + 2 + subject.LONGEST_ANSWER
    batch = task._batch([passage], [(first, first)], [""])
    assert task.answers(Oracle([{(first, 0): 9.0, (last - 1, 1): 9.0}]), batch) == [passage.answer((first, last - 1))]
    assert task.answers(Oracle([{(first, 0): 9.0, (last, 1): 9.0}]), batch) != [passage.answer((first, last))]


def test_what_stands_outside_the_passage_is_no_answer(task):
    """Scores of the question, of the end tokens and of padding do not count."""
    batch = task.batch("validation", np.arange(10))
    scores = [
        {(place, kind): 50.0 for place in range(batch.tokens.shape[1]) if not inside[place] for kind in range(2)}
        for inside in batch.passage.tolist()
    ]
    for row, passage in enumerate(batch.passages):
        scores[row] |= {(passage.first + 1, 0): 5.0, (passage.first + 2, 1): 5.0}
    expected = [passage.answer((passage.first + 1, passage.first + 2)) for passage in batch.passages]
    assert task.answers(Oracle(scores), batch) == expected


def test_a_model_that_has_diverged_gives_empty_answers(cache):
    """Its scores are NaN, of which argmax takes the first: a token of the question, which is no place in a passage."""
    long = a_question("One.", "One", "which of the many numbers that are known to everybody stands in this passage?")
    task = task_of(Questions("made up", (SHORT,), (long, SHORT)), cache)
    diverged = Oracle([])
    batch = task.batch("validation", np.arange(2))
    assert batch.passages[0].first > len(batch.passages[0].characters)
    diverged.forward = lambda tokens, *_: torch.full((*tokens.shape, 2), math.nan)
    assert task.answers(diverged, batch) == ["", ""]


def test_predict_finds_what_an_oracle_points_at(task):
    passage = "abspath: Return an absolute path. getsize: Return the size of a file."
    text = f"{passage} what does getsize do?"
    (encoded,) = task._encoded([("what does getsize do?", passage)])
    start = passage.rindex("Return")
    first, last = encoded.span(start, len(passage))
    assert task.predict(Oracle([{(first, 0): 9.0, (last, 1): 9.0}]), [text]) == ["Return the size of a file."]
    two = Oracle([{(first, 0): 9.0, (last, 1): 9.0}, {}])
    assert task.predict(two, [text, "Short. Why?"])[0] == "Return the size of a file."


@pytest.mark.parametrize("text", ["", "?", "what does getsize do?", "One. Two", "One. Two.", ". what?", "One what?"])
def test_what_is_no_passage_with_a_question(task, text):
    with pytest.raises(ConfigurationError, match=r"is no passage with a question at its end: write sentences"):
        task.predict(Oracle([]), [text])


def test_a_passage_too_long_for_the_model(task):
    with pytest.raises(ConfigurationError, match=r"have \d+ tokens, and the model takes 160: shorten the passage"):
        task.predict(Oracle([]), ["Word. " * 200 + "what?"])


def test_a_question_and_its_passage_come_apart():
    assert divided(" a: B c. d: E f. what does d do? ") == ("what does d do?", "a: B c. d: E f.")


def test_the_trivial_answer(task):
    assert task.trivial("a_b: Do it. c: Do that. what does c do?") == "Do it."
    assert task.trivial("No name here. And more. why?") == "No name here."
    measured = [["a: B c. d: E f. what does a do?", "B c.", "x"], ["a: B c. d: E f. what does d do?", "E f.", "x"]]
    assert task.baseline(measured) == {"exact match": 0.5, "F1": 0.5}


def test_passages_that_are_too_long(cache):
    """Cut behind the answer where that is possible, else left out; and both are counted."""
    early = a_question("Here. " + "more " * 50, "Here")
    late = a_question("more " * 50 + "There.", "There")
    long = Questions("long", (SHORT, early, late), (SHORT,))
    cut = task_of(long, cache, context=20)
    assert cut.sizes == {"training": 2, "validation": 1}
    assert cut.remarks == (
        "1 questions with a passage of over 20 tokens were cut behind the answer",
        "1 questions with a passage of over 20 tokens were left out",
    )
    batch = cut.batch("training", np.array([1]))
    assert batch.tokens.shape == (1, 20)
    assert batch.tokens[0, -1] == cut.vocabulary.end
    assert batch.passages[0].answer(tuple(batch.targets[0].tolist())) == "Here" == batch.references[0]
    assert cut.lengths("training").max() == 20
    dropped = task_of(long, cache, context=20, too_long="drop")
    assert dropped.sizes == {"training": 1, "validation": 1}
    assert dropped.remarks == ("2 questions with a passage of over 20 tokens were left out",)
    with pytest.raises(ConfigurationError, match=r"No training passage of long has its answer within 3 tokens: use a"):
        task_of(long, cache, context=3)


def test_the_longest_passage_that_fits(cache):
    """A sequence of as many tokens as the context is not cut; of one more, it loses its passage's last token."""
    questions = Questions("short", (SHORT, SHORT), (SHORT,))
    whole = task_of(questions, cache)
    length = int(whole.lengths("training")[0, 0])
    assert not task_of(questions, cache, context=length).remarks
    cut = task_of(questions, cache, context=length - 1)
    what = f"questions with a passage of over {length - 1} tokens were cut behind the answer"
    assert cut.remarks == (f"3 {what}",)
    tokens, shorter = (one.batch("training", np.array([0])).tokens[0].tolist() for one in (whole, cut))
    assert shorter == [*tokens[:-2], tokens[-1]]


def squad(*paragraphs, **others):
    return {"data": [{"title": "T", "paragraphs": list(paragraphs)}], "version": "1.1", **others}


def paragraph(context, *asked):
    """A passage as in SQuAD: questions with texts and places of their answers."""
    return {
        "context": context,
        "qas": [
            {"id": str(number), "question": question, "answers": [{"text": t, "answer_start": s} for t, s in answers]}
            for number, (question, *answers) in enumerate(asked)
        ],
    }


SKY = paragraph("The sky is blue.", ("What is blue?", ("The sky", 0), ("sky", 4)), ("What is the sky?", ("blue", 11)))
SEA = paragraph("The sea is wet.", ("What is wet?", ("The sea", 0)))


def test_a_file_of_squad(tmp_path, cache):
    (file := tmp_path / "train-v1.1.json").write_text(json.dumps(squad(SKY, SEA)))
    found = read_questions(file)
    assert found.name == "train-v1.1.json"
    asked = {(one.question, one.answer) for one in (*found.training, *found.validation)}
    assert asked == {("What is blue?", "The sky"), ("What is the sky?", "blue"), ("What is wet?", "The sea")}
    assert {one.passage for one in found.training} & {one.passage for one in found.validation} == set()
    task = task_of(found, cache)
    batch = task.batch("validation", np.arange(task.sizes["validation"]))
    answers = [
        passage.answer(tuple(span)) for passage, span in zip(batch.passages, batch.targets.tolist(), strict=True)
    ]
    assert answers == [one.answer for one in found.validation]


def test_a_file_of_squad_2(tmp_path):
    """Questions that have no answer are left out, and their plausible answers are none."""
    none = {
        "question": "What is dry?",
        "id": "9",
        "answers": [],
        "is_impossible": True,
        "plausible_answers": [{"text": "The sea", "answer_start": 0}],
    }
    both = {**SEA, "qas": [*({**asked, "is_impossible": False} for asked in SEA["qas"]), none]}
    (file := tmp_path / "train.json").write_text(json.dumps(squad(SKY, both, version="v2.0")))
    found = read_questions(file)
    assert sorted(one.question for one in (*found.training, *found.validation)) == [
        "What is blue?",
        "What is the sky?",
        "What is wet?",
    ]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            squad(SKY, paragraph("The sea.", ("What?", ("sea", 3)))),
            r"the answer 'sea' to 'What\?' does not stand at character 3 of its passage\.",
        ),
        (squad(SKY, paragraph("The sea.", ("What?", ("sea", 99)))), r"does not stand at character 99 of its passage"),
        (squad(SKY, paragraph("The sea.", ("What?", (" ", 3)))), r"the answer ' ' to 'What\?' does not stand"),
        (squad(SKY), r"has too few passages with an answered question: 1\. It takes two"),
        (squad(), r"has too few passages with an answered question: 0\."),
        (squad(SKY, paragraph("The sea.", ("What?",))), r"has too few passages with an answered question: 1\."),
        ([1, 2], r"The file .*q\.json"),
        ({"questions": []}, r"The file .*q\.json.*data"),
        (squad({"context": "The sea.", "qas": "none"}), r"The file .*q\.json.*qas"),
        (squad(SKY, paragraph("The sea.", ("What?", ("sea", -4)))), r"The file .*q\.json.*answer_start"),
        (squad(SKY, paragraph("The sea.", ("What?", ("sea", "4")))), r"The file .*q\.json.*answer_start"),
    ],
)
def test_files_that_cannot_be_used(tmp_path, content, message):
    (file := tmp_path / "q.json").write_text(json.dumps(content))
    with pytest.raises(ConfigurationError, match=message):
        read_questions(file)


@pytest.mark.parametrize("content", [b"", b"{", b"question\tanswer\n", b"\xff\xfe{\x00}\x00"])
def test_files_that_are_no_json(tmp_path, content):
    (file := tmp_path / "q.json").write_bytes(content)
    with pytest.raises(ConfigurationError, match=r"The file .*q\.json"):
        read_questions(file)


def test_positions_are_rotary_unless_another_kind_is_chosen(task):
    assert Encoder.build(task, ModelSettings(), 0).shape.positions == "rotary"
    assert Encoder.build(task, ModelSettings(positions="learnt"), 0).shape.positions == "learnt"
    odd = ModelSettings(width=9, heads=3)
    with pytest.raises(ConfigurationError, match=r"a head of width 3 has one left over: take --width 12"):
        Encoder.build(task, odd, 0)


@pytest.mark.parametrize("positions", ["learnt", "rotary"])
@pytest.mark.parametrize("norm", ["pre", "post"])
def test_the_size_is_that_of_the_module(task, positions, norm):
    settings = ModelSettings(positions=positions, norm=norm, layers=3, width=24)
    size = Encoder.size(task, settings)
    assert size.parameters == sum(one.numel() for one in Encoder.build(task, settings, 0).parameters())
    assert sum(size.parts) == size.parameters
    # Six operations a parameter: an example of n tokens reads n tokens for each of its two targets.
    blocks = 3 * (12 * 24**2 + 9 * 24)
    assert size.flops_per_token > 6 * blocks * task.source_tokens / 2
    assert math.isclose(size.flops_per_token, 6 * blocks * task.source_tokens / 2, rel_tol=0.35)
