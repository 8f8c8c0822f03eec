"""Intervals over patients and seeds, power, variance components, and Holm's correction."""

import numpy as np
import pytest
from scipy import stats

from isopose.study.statistics import bootstrap_mean, components, detectable, holm


def crossed(
    rng: np.random.Generator, patients: int, seeds: int, sd: tuple[float, float, float]
) -> np.ndarray:
    """Simulate scores by patient and seed with given standard deviations of patients, seeds and residuals."""
    of_patients, of_seeds = rng.normal(0.0, sd[0], (patients, 1)), rng.normal(0.0, sd[1], (1, seeds))
    return 0.2 + of_patients + of_seeds + rng.normal(0.0, sd[2], (patients, seeds))


def test_the_interval_with_one_seed_agrees_with_scipy() -> None:
    values = np.random.default_rng(0).normal(0.2, 0.1, 60)
    mine = bootstrap_mean(values[:, None])
    theirs = stats.bootstrap((values,), np.mean, n_resamples=10_000, method="percentile", rng=1)
    assert mine[:2] == pytest.approx(theirs.confidence_interval, abs=0.002)
    assert mine.error == pytest.approx(theirs.standard_error, rel=0.03)
    assert bootstrap_mean(values[:, None]) == mine, "the same each time"


def test_seeds_that_differ_widen_the_interval() -> None:
    """All patients gain 0.3 with one seed and 0.1 with another, so the variance is between seeds."""
    sure = np.full((50, 4), 0.2)
    lucky = np.tile([0.3, 0.1, 0.3, 0.1], (50, 1))
    assert bootstrap_mean(sure) == pytest.approx((0.2, 0.2, 0.0))
    low, high, error = bootstrap_mean(lucky)
    assert (low, high) == (pytest.approx(0.1), pytest.approx(0.3))
    assert error == pytest.approx(0.1 / np.sqrt(4), rel=0.03)


def test_the_standard_error_matches_repeated_studies() -> None:
    rng, sd = np.random.default_rng(2), (0.1, 0.05, 0.08)
    means = [crossed(rng, 100, 5, sd).mean() for _ in range(4000)]
    errors = [bootstrap_mean(crossed(rng, 100, 5, sd)).error for _ in range(10)]
    expected = np.sqrt(0.1**2 / 100 + 0.05**2 / 5 + 0.08**2 / 500)
    assert np.std(means) == pytest.approx(expected, rel=0.05)
    # A bootstrap of five seeds sees four fifths of their variance.
    assert np.mean(np.square(errors)) == pytest.approx(expected**2, rel=0.25)


def test_a_patient_with_a_missing_seed_counts_by_the_others() -> None:
    values = np.array([[0.4, np.nan], [0.0, 0.0], [0.2, 0.2]])
    low, high, _ = bootstrap_mean(values)
    assert (low, high) == (pytest.approx(0.0), pytest.approx(0.4))


def test_the_detectable_difference_has_a_power_of_80_percent() -> None:
    rng = np.random.default_rng(3)
    error = 0.1 / np.sqrt(100)
    samples = rng.normal(detectable(error), 0.1, (4000, 100))
    result = stats.ttest_1samp(samples, 0.0, axis=1).pvalue < 0.05
    assert result.mean() == pytest.approx(0.80, abs=0.02)
    assert detectable(1.0) == pytest.approx(2.8016, abs=1e-4)


def test_variance_components_are_recovered() -> None:
    rng, sd = np.random.default_rng(4), (0.3, 0.2, 0.1)
    result = np.mean([components(crossed(rng, 60, 6, sd)) for _ in range(300)], axis=0)
    np.testing.assert_allclose(result, np.square(sd), rtol=0.1)
    assert components(np.tile([[0.1], [0.3]], 3)).seeds == 0.0
    planned = components(crossed(rng, 60, 6, sd))
    assert planned.error(60, 6) ** 2 == pytest.approx(
        planned.patients / 60 + planned.seeds / 6 + planned.rest / 360
    )


def test_holm_correction_agrees_with_its_definition() -> None:
    # Holm (1979): sorted p times the number that is left, never falling.
    assert holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert holm([0.5, 0.9]) == pytest.approx([1.0, 1.0])
    assert holm([]) == []
    # Of a family of eight, six of which were not made.
    assert holm([0.01, 0.001], 8) == pytest.approx([0.07, 0.008])
