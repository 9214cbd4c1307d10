"""Decoding: which text to write, when a model says how likely each next token is.

Greedy decoding takes the likeliest token, again and again. Beam search keeps several unfinished texts, the hypotheses,
because the likeliest text need not start with the likeliest token.
"""

from collections.abc import Callable, Sequence
from itertools import count
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from bigbatch.comm.errors import ConfigurationError


class Generator(Protocol):
    """What a model offers for decoding: it reads tokens one by one, and predicts the next after each.

    It has a number of rows, each a text that is being written. It remembers, or caches, what it needs of them.
    """

    def advance(self, tokens: Tensor) -> Tensor:
        """Reads the newest token of each row, (rows,), and returns the logits of the next, (rows, vocabulary)."""

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows, (new rows,), in this order: some no longer, others several times."""


class Recomputed:
    """A generator that remembers only tokens, and computes everything anew at each step: for models without a cache.

    Args:
        predict: computes logits, (rows, length, vocabulary), from the tokens so far, (rows, length), and the number of
            the example that each row belongs to, (rows,).
        rows: number of examples.
        device: where the tokens are.
    """

    def __init__(
        self, predict: Callable[[Tensor, Tensor], Tensor], rows: int, device: torch.device | str = "cpu"
    ) -> None:
        self._predict = predict
        self._examples = torch.arange(rows, device=device)
        self._tokens = torch.empty((rows, 0), dtype=torch.int64, device=device)

    def advance(self, tokens: Tensor) -> Tensor:
        """Appends a token to each row and predicts the next from all of them."""
        self._tokens = torch.cat([self._tokens, tokens[:, None]], 1)
        return self._predict(self._tokens, self._examples)[:, -1]

    def keep(self, rows: Tensor) -> None:
        """Goes on with these rows."""
        self._examples, self._tokens = self._examples[rows], self._tokens[rows]


def generator_of(model: Any, given: Sequence[Any], otherwise: Callable[[], Generator]) -> Generator:
    """Makes a generator for a model: its own, or another where it offers none, as a user's model need not.

    Args:
        model: the model; its own is what its method `generator` returns, which keeps what it has computed, unless that
            is None.
        given: what that method is called with: what the model reads before it writes.
        otherwise: makes the other generator, such as one that is `Recomputed`.
    """
    make = getattr(model, "generator", None)
    own: Generator | None = None if make is None else make(*given)
    return otherwise() if own is None else own


def continued(
    model: Any, given: Sequence[Any], otherwise: Callable[[], Generator], prompt: Tensor, end: int, longest: int
) -> list[list[int]]:
    """Has a model go on with texts greedily: by its own method `continued`, or else token by token.

    Args:
        model: the model; its own method, if it has one, is called with `given`, `prompt`, `end` and `longest`.
        given: what the model reads before it writes; see `generator_of`.
        otherwise: makes a generator for a model that offers none.
        prompt: (rows, tokens) what each text begins with, at least one token, which is not part of the output.
        end: the token that ends a text, which is not part of the output either.
        longest: number of tokens after which a text is cut.

    Returns:
        The tokens of each row.
    """
    own: Callable[..., list[list[int]]] | None = getattr(model, "continued", None)
    if own is not None:
        return own(*given, prompt, end, longest)
    generator = generator_of(model, given, otherwise)
    for tokens in prompt[:, :-1].T:
        generator.advance(tokens)
    return greedy(generator, prompt[:, -1], end, longest)


def greedy(generator: Generator, start: Tensor, end: int, longest: int | Tensor) -> list[list[int]]:
    """Writes a text for each row by taking the likeliest token at every step; of equal ones, that of lowest number.

    Rows that have ended are computed no further. The caller switches gradients off.

    Args:
        generator: predicts the next tokens; it has as many rows as there are texts to write.
        start: (rows,) the token that each text starts from, which is not part of the output.
        end: the token that ends a text, which is not part of the output either.
        longest: number of steps after which a text is cut, the same for all or one for each row, (rows,).

    Returns:
        The tokens of each row.
    """
    limits = torch.as_tensor(longest, device=start.device).expand(len(start))
    outputs: list[list[int]] = [[] for _ in range(len(start))]
    rows, tokens = torch.arange(len(start), device=start.device), start
    live = limits > 0
    for step in count(1):
        if not live.all():
            generator.keep(live.nonzero().flatten())
            rows, tokens = rows[live], tokens[live]
        if not len(rows):
            break
        tokens = generator.advance(tokens).argmax(-1)
        for row, token in zip(rows.tolist(), tokens.tolist(), strict=True):
            outputs[row].append(token)
        live = (tokens != end) & (step < limits[rows])
    return [_without(end, output) for output in outputs]


def beam(
    generator: Generator, start: Tensor, end: int, longest: int | Tensor, beams: int, length_penalty: float
) -> list[list[int]]:
    """Writes a text for each row by beam search, which with one beam is greedy decoding.

    Each row has `beams` places. At every step, all continuations of a row's hypotheses by one token compete for them,
    by log-probability. A hypothesis is finished when it takes the end token, or has `longest` tokens; it holds its
    place from then on, and the hypotheses that go on compete for the rest.

    The best finished hypothesis is the one with the highest score, log-probability / ((5 + length) / 6)^length_penalty
    (Wu et al. 2016, section 7; Vaswani et al. 2017 take 0.6). Its length is the number of tokens whose probabilities
    it multiplies: the end token counts, the start token does not. The first to finish need not be the best. A row is
    done only when none of its hypotheses can still reach a higher score than its best finished one.

    Of equal log-probabilities, the hypothesis that continues a likelier one comes first, then the lower token; of equal
    scores, the one that finished first. Rows that are done are computed no further. The caller switches gradients off.

    Args:
        generator: predicts the next tokens; it has as many rows as there are texts to write.
        start: (rows,) the token that each text starts from, which is not part of the output.
        end: the token that ends a text, which is not part of the output either.
        longest: number of steps after which a text is cut, the same for all or one for each row, (rows,).
        beams: number of hypotheses for each row.
        length_penalty: the exponent; 0 prefers the likeliest text, and more prefers longer ones.

    Returns:
        The tokens of each row's best hypothesis; none if the model gives no text a probability.

    Raises:
        ConfigurationError: there is less than one beam.
    """
    if beams < 1:
        raise ConfigurationError(f"{beams} beams cannot hold a hypothesis: take at least 1.")

    limits = torch.as_tensor(longest, device=start.device).expand(len(start))
    outputs: list[list[int]] = [[] for _ in range(len(start))]
    rows = torch.arange(len(start), device=start.device)
    best = torch.full((len(start),), -torch.inf, device=start.device)  # the highest score of a finished hypothesis
    places = torch.full_like(rows, beams)  # how many no finished hypothesis holds
    texts = start[:, None, None]  # (rows, hypotheses, tokens)
    log_probabilities = torch.zeros((len(start), 1), device=start.device)  # -∞ where a place is empty
    parents = rows[:, None]  # (rows, hypotheses) which row of the generator each hypothesis continues
    live = limits > 0
    for length in count(1):
        generator.keep(parents[live].flatten())
        rows, limits, best, places, texts, log_probabilities = (
            each[live] for each in (rows, limits, best, places, texts, log_probabilities)
        )
        if not len(rows):
            break

        logits = generator.advance(texts[:, :, -1].flatten())
        steps = logits.log_softmax(-1).view(*log_probabilities.shape, -1)
        candidates = (log_probabilities[:, :, None] + steps).flatten(1)
        log_probabilities, chosen = _largest(candidates, min(int(places.max()), candidates.shape[1]))

        continued, tokens = chosen // logits.shape[1], chosen % logits.shape[1]
        parents = continued + texts.shape[1] * torch.arange(len(rows), device=start.device)[:, None]
        texts = torch.cat([texts.take_along_dim(continued[:, :, None], 1), tokens[:, :, None]], 2)
        rank = torch.arange(tokens.shape[1], device=start.device)
        log_probabilities = log_probabilities.masked_fill(rank >= places[:, None], -torch.inf)

        finished = (tokens == end) | (limits == length)[:, None]
        scores = (log_probabilities / _penalty(length, length_penalty)).masked_fill(~finished, -torch.inf)
        score, place = scores.max(1)
        for row in (score > best).nonzero().flatten().tolist():
            outputs[int(rows[row])] = texts[row, place[row], 1:].tolist()
        best = torch.maximum(best, score)
        places = places - (scores > -torch.inf).sum(1)

        # Log-probabilities only fall, so that no score gets above this one's, divided by the greatest penalty to come.
        log_probabilities = log_probabilities.masked_fill(finished, -torch.inf)
        greatest = _penalty(limits.to(log_probabilities), length_penalty).clamp(_penalty(length + 1, length_penalty))
        live = log_probabilities.amax(1) / greatest > best
    return [_without(end, output) for output in outputs]


Length = TypeVar("Length", float, Tensor)


def _penalty(length: Length, exponent: float) -> Length:
    penalty: Length = ((5 + length) / 6) ** exponent
    return penalty


def _largest(values: Tensor, number: int) -> tuple[Tensor, Tensor]:
    """The largest values of each row, (rows, number), and their places; of equal values the first come first."""
    largest, places = values.topk(min(number + 1, values.shape[1]))
    if (largest[:, 1:] == largest[:, :-1]).any():  # torch leaves open which of equal values topk takes
        largest, places = values.sort(dim=1, descending=True, stable=True)
    return largest[:, :number], places[:, :number]


def _without(end: int, text: list[int]) -> list[int]:
    return text[:-1] if text[-1:] == [end] else text
