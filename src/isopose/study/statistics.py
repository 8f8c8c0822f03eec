"""Statistics of a difference between arms, in which both patients and trainings vary."""

from collections.abc import Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from scipy import stats

#: Bootstrap draws for an interval, its coverage, and the power of the detectable difference.
DRAWS, COVERAGE, POWER = 10_000, 0.95, 0.80


class Interval(NamedTuple):
    """A bootstrap interval of a mean, and the standard error of that mean."""

    low: float
    high: float
    error: float


def bootstrap_mean(values: np.ndarray) -> Interval:
    """Return the percentile interval of the mean over patients of their means over seeds.

    Patients and seeds are drawn with replacement, each independently of the other, because every model is
    tested on the same patients (Owen, The pigeonhole bootstrap, Ann. Appl. Stat. 1:386, 2007). This is done
    in numpy because ``scipy.stats.bootstrap`` draws along one axis only. A single seed is not resampled, and
    two seeds say little about other trainings. The same values always give the same interval.

    Args:
        values: ``(patients, seeds)``; NaN for missing values; each patient has a value for at least one seed.
    """
    is_finite = np.isfinite(values)
    of_patients, of_seeds = (_draw(count, axis) for axis, count in enumerate(values.shape))
    counts = of_seeds @ is_finite.T.astype(float)
    means = of_seeds @ np.where(is_finite, values, 0.0).T / np.maximum(counts, 1.0)
    # A patient without a value in the drawn seeds is left out of that draw.
    weights = of_patients * (counts > 0)
    bootstrap_means = (weights * means).sum(axis=1)[weights.any(axis=1)] / weights.sum(axis=1)[
        weights.any(axis=1)
    ]
    tail = 50.0 * (1.0 - COVERAGE)
    low, high = np.percentile(bootstrap_means, [tail, 100.0 - tail])
    return Interval(float(low), float(high), float(bootstrap_means.std()))


@lru_cache(maxsize=64)
def _draw(count: int, axis: int) -> np.ndarray:
    """Return ``(DRAWS, count)``: how often each of ``count`` members was drawn; a single one always once."""
    # The axis is part of the seed, so that patients and seeds of equal number are drawn independently.
    return np.random.default_rng([count, axis]).multinomial(count, np.full(count, 1.0 / count), DRAWS)


def detectable(error: float) -> float:
    """Return the difference that a two-sided test at 5 % finds with a power of :data:`POWER`.

    Args:
        error: standard error of the mean difference.
    """
    return float((stats.norm.ppf(0.5 + 0.5 * COVERAGE) + stats.norm.ppf(POWER)) * error)


class Components(NamedTuple):
    """Variances of patients, of seeds, and the residual variance, each 0 or more."""

    patients: float
    seeds: float
    rest: float

    def error(self, patients: int, seeds: int) -> float:
        """Return the standard error of a mean over a number of patients and seeds."""
        each = self.patients / patients + self.seeds / seeds + self.rest / (patients * seeds)
        return float(np.sqrt(each))


def components(values: np.ndarray) -> Components:
    """Return the variance components of a table of patients and seeds, by its mean squares.

    The two-way layout without replication (Searle, Casella and McCulloch, Variance Components, 1992, 4.2); an
    estimate below 0 is 0.

    Args:
        values: ``(patients, seeds)``, at least two of each.
    """
    count, seeds = values.shape
    rows, columns = values.mean(axis=1), values.mean(axis=0)
    left = values - rows[:, None] - columns[None, :] + values.mean()
    rest = float((left**2).sum() / ((count - 1) * (seeds - 1)))
    of_patients = (seeds * float(rows.var(ddof=1)) - rest) / seeds
    of_seeds = (count * float(columns.var(ddof=1)) - rest) / count
    return Components(max(0.0, of_patients), max(0.0, of_seeds), rest)


def holm(p_values: Sequence[float], tests: int | None = None) -> list[float]:
    """Return p-values after Holm's step-down correction (1979), which controls the family-wise error rate.

    Args:
        p_values: of the tests that were made.
        tests: number of tests in the family, if larger; tests that were not made count as the largest p.
    """
    order, family = np.argsort(p_values), max(tests or 0, len(p_values))
    out, so_far = np.empty(len(p_values)), 0.0
    for rank, place in enumerate(order):
        so_far = max(so_far, min(1.0, (family - rank) * p_values[place]))
        out[place] = so_far
    return [float(value) for value in out]
