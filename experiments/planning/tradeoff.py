"""The trade-off of updates against tokens: how many updates a loss takes at each batch size, measured or estimated."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike

from bigbatch.comm.errors import ConfigurationError
from bigbatch.comm.simulation.network import FloatArray
from bigbatch.models.sizes import ModelSize

CONFIDENCE = 0.95
"""Confidence level of every interval."""

FEWEST_BATCHES = 4
"""Least number of different batch sizes for a fit: two numbers are fitted, and a curve must be visible."""

WIDEST = 10.0
"""Largest ratio of the upper to the lower end of the critical batch's interval at which it can be told."""


@dataclass(frozen=True)
class Tradeoff:
    """The cost of a loss: S(B) = S_min (1 + B_c/B) updates with a batch of B tokens, E(B) = E_min (1 + B/B_c) tokens.

    So (S/S_min - 1)(E/E_min - 1) = 1, with E = BS and E_min = S_min B_c: McCandlish, Kaplan, Amodei et al., "An
    empirical model of large-batch training" (2018), equation 2.11. It holds where every batch size has the
    learning rate that suits it best.

    Attributes:
        least_updates: S_min, the number of updates that even the largest batch takes.
        critical_batch: B_c, the batch in tokens that takes twice the least updates and twice the least tokens.

    Raises:
        ConfigurationError: one of the two is not a number above 0.
    """

    least_updates: float
    critical_batch: float

    def __post_init__(self) -> None:
        for name, value in (("least number of updates", self.least_updates), ("critical batch", self.critical_batch)):
            if not (math.isfinite(value) and value > 0):
                raise ConfigurationError(f"The {name} is {value!r}; it must be a number above 0.")

    @property
    def least_tokens(self) -> float:
        """E_min, the number of tokens that even the smallest batch takes."""
        return self.least_updates * self.critical_batch

    def updates(self, batch: float) -> float:
        """Computes S(B), the number of updates with a batch of B tokens."""
        return self.least_updates * (1 + self.critical_batch / batch)

    def tokens(self, batch: float) -> float:
        """Computes E(B), the number of tokens with a batch of B tokens."""
        return self.least_tokens * (1 + batch / self.critical_batch)


Interval = tuple[float, float]
"""The two ends of an interval, the lower first."""


@dataclass(frozen=True)
class Fit:
    """A trade-off fitted to measurements.

    Attributes:
        tradeoff: the trade-off that fits best.
        least_updates: 95 % interval of S_min.
        critical_batch: 95 % interval of B_c, in tokens.
        scatter: standard deviation of log S about the fit, with n - 2 degrees of freedom; NaN if there are none.
        untold: a sentence that says why the critical batch cannot be told from these measurements; None if it can.
        covariance: (2, 2) covariance of log S_min and log B_c; infinite where it is not known.
        quantile: quantile of Student's t, which turns a standard error into half an interval.
    """

    tradeoff: Tradeoff
    least_updates: Interval
    critical_batch: Interval
    scatter: float
    untold: str | None
    covariance: tuple[tuple[float, float], tuple[float, float]]
    quantile: float

    def band(self, batches: ArrayLike) -> tuple[FloatArray, FloatArray]:
        """Computes the 95 % interval of the mean log S at batches of any size, as numbers of updates.

        It uses the delta method: log S is linear enough in log S_min and log B_c that its variance follows from theirs.

        Args:
            batches: (any shape) batch sizes in tokens.

        Returns:
            The lower and upper ends, of the same shape.
        """
        batches = np.asarray(batches, np.float64)
        slopes = _slopes(np.log(self.tradeoff.critical_batch), np.log(batches))
        (least, both), (_, critical) = self.covariance
        middle = np.log(self.tradeoff.least_updates) + np.log1p(self.tradeoff.critical_batch / batches)
        if not math.isfinite(least + both + critical):
            return np.zeros_like(middle), np.full_like(middle, np.inf)
        half = self.quantile * np.sqrt(np.maximum(least + 2 * slopes * both + slopes**2 * critical, 0.0))
        return np.exp(middle - half), np.exp(middle + half)


def _slopes(critical: float, batches: FloatArray) -> FloatArray:
    """How log S grows with log B_c: B_c / (B_c + B), of the logarithms of both."""
    return np.asarray(1 / (1 + np.exp(batches - critical)))


_SEARCHED = 1e4
"""Times the largest batch, and part of the smallest, between which the critical batch is searched."""


def fit(batches: Sequence[float], updates: Sequence[float]) -> Fit:
    """Fits a trade-off to measurements by least squares in log S.

    A run that takes 10 % longer is as far off with a small batch as with a large one, so errors are taken as relative.
    The intervals come from the curvature at the best fit and Student's t, in log S_min and log B_c (Seber and Wild,
    "Nonlinear regression", 1989, section 5.1), and so reach as many times below the best as above it.

    Args:
        batches: B of each measurement, in tokens; the same size may occur several times.
        updates: S of each measurement, in the same order.

    Raises:
        ConfigurationError: there are no measurements, there are not as many batches as updates, or one is not a number
            above 0.
    """
    from scipy.optimize import least_squares
    from scipy.special import stdtrit

    if len(batches) != len(updates) or not len(batches):
        raise ConfigurationError(
            f"There are {len(batches)} batch sizes and {len(updates)} numbers of updates to fit; "
            "there must be as many of both, and at least one."
        )
    for value in (*batches, *updates):
        if not (math.isfinite(value) and value > 0):
            raise ConfigurationError(f"{value!r} cannot be fitted; batches and updates must be numbers above 0.")
    sizes, measured = np.log(np.asarray(batches, np.float64)), np.log(np.asarray(updates, np.float64))

    def residuals(both: FloatArray) -> FloatArray:
        return np.asarray(both[0] + np.logaddexp(0.0, both[1] - sizes) - measured)

    def jacobian(both: FloatArray) -> FloatArray:
        return np.stack([np.ones_like(sizes), _slopes(both[1], sizes)], axis=1)

    # For a given B_c the best S_min is a mean; where to begin is found along B_c alone.
    low, high = sizes.min() - math.log(_SEARCHED), sizes.max() + math.log(_SEARCHED)
    starts = np.linspace(low, high, 200)
    means = np.array([(measured - np.logaddexp(0.0, start - sizes)).mean() for start in starts])
    errors = [np.square(residuals(np.array(both))).sum() for both in zip(means, starts, strict=True)]
    first = np.array([means[int(np.argmin(errors))], np.clip(starts[int(np.argmin(errors))], low + 1e-6, high - 1e-6)])
    bounds = ([-np.inf, low], [np.inf, high])
    found = least_squares(residuals, first, jacobian, bounds, xtol=1e-14, ftol=1e-14, gtol=1e-14)
    best = np.asarray(found.x, np.float64)

    spare = len(batches) - 2
    covariance, scatter, quantile = np.full((2, 2), np.inf), math.nan, math.inf
    if spare > 0:
        scatter = math.sqrt(float(np.square(residuals(best)).sum()) / spare)
        quantile = float(stdtrit(spare, (1 + CONFIDENCE) / 2))
        slopes = jacobian(best)
        curvature = slopes.T @ slopes
        if np.linalg.cond(curvature) < 1 / np.finfo(np.float64).eps:
            covariance = scatter**2 * np.linalg.inv(curvature)
    least, critical = (_interval(best[place], covariance[place, place], quantile) for place in range(2))
    tradeoff = Tradeoff(*(float(value) for value in np.exp(best)))
    return Fit(
        tradeoff,
        least,
        critical,
        scatter,
        _untold(tradeoff.critical_batch, critical, batches),
        ((float(covariance[0, 0]), float(covariance[0, 1])), (float(covariance[1, 0]), float(covariance[1, 1]))),
        quantile,
    )


def _interval(middle: float, variance: float, quantile: float) -> Interval:
    half = quantile * math.sqrt(variance) if math.isfinite(quantile) else math.inf
    return (math.exp(middle - half), math.exp(middle + half)) if middle + half < 700 else (0.0, math.inf)


def _untold(critical: float, interval: Interval, batches: Sequence[float]) -> str | None:
    """Why the critical batch cannot be told, if so."""
    different, (low, high) = len(set(batches)), interval
    if different < FEWEST_BATCHES:
        return (
            f"The critical batch cannot be told from {different} batch size(s): "
            f"measure at least {FEWEST_BATCHES} different ones."
        )
    if critical < min(batches):
        return (
            f"The critical batch cannot be told: it seems to lie below all batches measured, the smallest of which is "
            f"{min(batches):,.0f} tokens; measure smaller ones."
        )
    if critical > max(batches):
        return (
            f"The critical batch cannot be told: it seems to lie above all batches measured, the largest of which is "
            f"{max(batches):,.0f} tokens; measure larger ones."
        )
    if not high <= WIDEST * low:
        ends = f"{low:,.0f} to {high:,.0f} tokens" if low and math.isfinite(high) else "anything"
        return (
            f"The critical batch cannot be told: it may be {ends}, which is more than a factor of {WIDEST:g}; "
            "measure more batch sizes, or each with more seeds."
        )
    return None


# Of language models that nobody measured.

CRITICAL_BATCH, LOSS_EXPONENT = 2.1e8, 0.21
"""B* in tokens and α_B: Kaplan et al. (2020), equation 1.4 and table 5."""

MODEL_SCALE, MODEL_EXPONENT, UPDATE_SCALE, UPDATE_EXPONENT = 6.5e13, 0.077, 2.1e3, 0.76
"""N_c in parameters, α_N, S_c in updates and α_S: Kaplan et al. (2020), equation 5.6 and table 3."""


def kaplan(model: ModelSize, target: float) -> Tradeoff:
    """Estimates from published scaling laws how many updates a language model of this size takes to reach a loss.

    L = (N_c/N)^α_N + (S_c/S_min)^α_S, solved for S_min, and B_c = B*/L^(1/α_B): Kaplan et al., "Scaling laws for neural
    language models" (2020), equations 5.6 and 5.3. Fitted to Transformers trained with Adam on WebText2, in 50,257
    different tokens and sequences of 1,024: a rule of thumb for any other text, vocabulary or optimiser.

    Args:
        model: the size of the model, of which only the parameters besides the embeddings count.
        target: L, the loss to reach, in nats per token.

    Raises:
        ConfigurationError: the target is not a number above 0, or this model never reaches it.
    """
    if not (math.isfinite(target) and target > 0):
        raise ConfigurationError(f"The target is {target!r}; a loss must be a number above 0.")
    floor = (MODEL_SCALE / model.beside_embeddings) ** MODEL_EXPONENT
    if target <= floor:
        raise ConfigurationError(
            f"{model.name} does not get to a loss of {target:g} however long it trains: its floor is {floor:.3f} nats "
            "a token (Kaplan et al., 2020); set a --target above that, or take a larger model."
        )
    updates = UPDATE_SCALE * (target - floor) ** (-1 / UPDATE_EXPONENT)
    return Tradeoff(updates, CRITICAL_BATCH * target ** (-1 / LOSS_EXPONENT))
