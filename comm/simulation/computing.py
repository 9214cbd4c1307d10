"""Computing in simulated time: how long a worker takes for its tokens, and what makes some workers slower."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

import numpy as np

from bigbatch.comm.errors import ConfigurationError, quoted
from bigbatch.comm.kinds import Number, Whole, check_fields, checked
from bigbatch.comm.simulation import UTILISATION

FORWARD_SHARE = 1 / 3
"""The part of an update's computing that is its forward pass.

Backward multiplies by each weight matrix twice, for the gradient of its input and for its own, and so costs twice
forward: Kaplan et al., "Scaling laws for neural language models" (2020), section 2.1.
"""


FLOPS = Number(least=1)
"""The kind of value for a speed, in floating-point operations a second."""

SHARE = Number(least=1e-6, most=1)
"""The kind of value for a share of what is there, such as of a GPU's peak speed."""


@dataclass(frozen=True)
class Computing:
    """How long a worker computes when nothing slows it.

    Attributes:
        seconds_per_token: seconds for forward and backward of one token.

    Raises:
        ConfigurationError: the seconds are no number of 0 or more.
    """

    seconds_per_token: float

    def __post_init__(self) -> None:
        check_fields(self, {"seconds_per_token": Number(least=0)})

    @classmethod
    def from_flops(cls, flops_per_token: float, flops: float, utilisation: float = UTILISATION) -> "Computing":
        """Derives the time of a token from its floating-point operations and the worker's speed.

        Args:
            flops_per_token: floating-point operations for forward and backward of one token.
            flops: operations a second that the worker does at best; see `GPU`.
            utilisation: the part of them that training reaches, from a millionth to 1.

        Raises:
            ConfigurationError: a number out of these ranges.
        """
        operations = checked("flops_per_token", Number(least=0), flops_per_token)
        speed = checked("flops", FLOPS, flops)
        return cls(operations / (speed * checked("utilisation", SHARE, utilisation)))

    def forward(self, tokens: float) -> float:
        """Seconds for the forward pass of `tokens` tokens."""
        return tokens * self.seconds_per_token * FORWARD_SHARE

    def backward(self, tokens: float, recomputed: float = 0.0) -> float:
        """Seconds for the backward pass of `tokens` tokens, which computes a share of forward once more.

        Args:
            tokens: number of tokens.
            recomputed: that share, from 0 to 1, beside what `seconds_per_token` counts.
        """
        return tokens * self.seconds_per_token * (1 - FORWARD_SHARE) + recomputed * self.forward(tokens)


EXPONENTIAL = Number(least=0, most=1e6)
LOGNORMAL = Number(least=0, most=10)
"""σ of a normal distribution's exponential. Of 10, one factor in forty is above 3 · 10⁸ already."""

FACTOR = Number(least=0, most=1e6)
MOMENT = Number(least=0, most=1e9)
"""The kind of value for a moment of simulated time, in seconds."""

RANK = Whole(least=0, most=(1 << 20) - 1)
"""The kind of value for a rank's number."""


def by_rank(what: str, numbers: Any, kind: Number) -> Mapping[int, float]:
    """Reads a number for each of several ranks.

    Args:
        what: the name of the mapping, for messages.
        numbers: maps ranks to numbers.
        kind: the kind of number.

    Raises:
        ConfigurationError: it is no mapping, or holds what is no rank or no such number.
    """
    if not isinstance(numbers, Mapping):
        raise ConfigurationError(f"{what} cannot be {quoted(numbers)}: it must map ranks to numbers.")
    return MappingProxyType(
        {
            checked(f"A rank of {what}", RANK, rank): checked(f"{what} of rank {rank}", kind, number)
            for rank, number in numbers.items()
        }
    )


@dataclass(frozen=True)
class Stragglers:
    """How much slower than usual workers compute, and which of them fail at what time.

    A worker's update takes its time without stragglers, times a factor: the product of what is given here. The factors
    are drawn anew for every update and every worker.

    Attributes:
        exponential: R: a factor of 1 + Exp(mean R), so that Δ becomes Δ + Exp(mean RΔ); 0 for none.
        lognormal: σ: a factor of exp(σZ), Z a standard normal, whose median is 1; 0 for none.
        slow: rank to its constant factor.
        failures: rank to the simulated time at which it fails, in seconds.
    """

    exponential: float = 0.0
    lognormal: float = 0.0
    slow: Mapping[int, float] = field(default_factory=dict, hash=False)
    failures: Mapping[int, float] = field(default_factory=dict, hash=False)

    def __post_init__(self) -> None:
        check_fields(self, {"exponential": EXPONENTIAL, "lognormal": LOGNORMAL})
        object.__setattr__(self, "slow", by_rank("slow", self.slow, FACTOR))
        object.__setattr__(self, "failures", by_rank("failures", self.failures, MOMENT))

    @property
    def random(self) -> bool:
        """Whether the factors are drawn at random, and so differ from update to update."""
        return bool(self.exponential or self.lognormal)

    def factors(self, worker: int, seed: int) -> Iterator[float]:
        """Yields one factor of 0 or more for every update of a worker, without end.

        They depend on the seed, the worker and its number of the update alone: not on who else draws, nor when.

        Args:
            worker: the worker's rank, 0 or more.
            seed: the seed of the run, 0 or more.
        """
        generator = np.random.default_rng(np.random.SeedSequence([seed, worker]))
        constant = self.slow.get(worker, 1.0)
        while True:
            factor = constant
            if self.exponential:
                factor *= 1 + self.exponential * generator.standard_exponential()
            if self.lognormal:
                factor *= math.exp(self.lognormal * generator.standard_normal())
            yield factor

    def check_ranks(self, workers: int) -> None:
        """Checks that every rank named is that of one of `workers` workers.

        Raises:
            ConfigurationError: a rank is too large.
        """
        for rank in (*self.slow, *self.failures):
            if rank >= workers:
                raise ConfigurationError(
                    f"The stragglers name rank {rank}, but there are {workers} workers; ranks begin at 0."
                )


_FORMS = "none, exponential:R, lognormal:SIGMA, slow:RANK:FACTOR, fail:RANK:SECONDS"
_NUMBERS = {"exponential": EXPONENTIAL, "lognormal": LOGNORMAL, "slow": FACTOR, "fail": MOMENT}


def stragglers_named(words: str) -> Stragglers:
    """Reads stragglers from words joined by commas, such as "lognormal:0.2,slow:3:2".

    Args:
        words: `none`; `exponential:R`, an update that would take Δ takes Δ + Exp(mean RΔ); `lognormal:SIGMA`, it takes
            Δ exp(σZ); `slow:RANK:FACTOR`, a rank takes FACTOR times as long; `fail:RANK:SECONDS`, a rank fails then.

    Raises:
        ConfigurationError: a word has none of these forms, a number in it is none or out of range, or two words say
            the same thing.
    """
    spreads: dict[str, float] = {}
    ranks: dict[str, dict[int, float]] = {"slow": {}, "fail": {}}
    for word in (part.strip() for part in words.split(",")):
        match word.split(":"):
            case ["none"]:
                fresh = True
            case ["exponential" | "lognormal" as kind, number]:
                fresh = kind not in spreads
                spreads[kind] = _part(word, _NUMBERS[kind], number)
            case ["slow" | "fail" as kind, of, number]:
                rank = _part(word, RANK, of)
                fresh = rank not in ranks[kind]
                ranks[kind][rank] = _part(word, _NUMBERS[kind], number)
            case _:
                raise _no_straggler(word)
        if not fresh:
            raise ConfigurationError(f"The stragglers {quoted(words)} say twice what {word!r} says; once is enough.")
    return Stragglers(**spreads, slow=ranks["slow"], failures=ranks["fail"])


def _part(word: str, kind: Number | Whole, text: str) -> Any:
    try:
        return kind.read(text)
    except ValueError as error:
        raise _no_straggler(word, f": {quoted(text)} {error}") from None


def _no_straggler(word: str, reason: str = "") -> ConfigurationError:
    return ConfigurationError(f"{quoted(word)} is no kind of straggler{reason}. Known: {_FORMS}, joined by commas.")


def harmonic(n: int) -> float:
    """H_n = 1 + 1/2 + … + 1/n; H_0 is 0."""
    return math.fsum(1 / k for k in range(1, n + 1))


def expected_synchronous(delta: float, mu: float, workers: int) -> float:
    """Seconds that an update takes on average when the slowest worker is waited for: Δ + μH_W.

    It is the mean of the largest of W independent times Δ + Exp(mean μ): while k of them are still awaited, the next
    one comes after μ/k (Rényi, "On the theory of order statistics", 1953).

    Args:
        delta: Δ, seconds that every worker needs.
        mu: μ, seconds that a worker needs beyond that, on average.
        workers: W.
    """
    return expected_backup(delta, mu, workers, 0)


def expected_backup(delta: float, mu: float, workers: int, spares: int) -> float:
    """Seconds that an update takes on average when the slowest are not waited for: Δ + μ(H_P − H_{P−K}).

    P workers run, and the gradients of the first K = P − spares are taken: Chen et al., "Revisiting distributed
    synchronous SGD" (2016). The mean is that of the Kth smallest of P independent times Δ + Exp(mean μ).

    Args:
        delta: Δ, seconds that every worker needs.
        mu: μ, seconds that a worker needs beyond that, on average.
        workers: P, all that run, the spares among them.
        spares: how many are not waited for.

    Raises:
        ConfigurationError: nobody would be waited for, or more than all.
    """
    if not 0 <= spares < workers:
        raise ConfigurationError(f"{spares} of {workers} workers are spares; at least one must be waited for.")
    return delta + mu * math.fsum(1 / k for k in range(spares + 1, workers + 1))
