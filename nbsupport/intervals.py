"""Intervals for what the suite reports: rates, areas under the ROC curve, means of paired differences."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, special, stats


@dataclass(frozen=True)
class Rate:
    """A measured value with its interval and the number of observations; an empty sample gives NaN."""

    value: float
    low: float
    high: float
    n: int


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Rate:
    """Return `successes / n` with Wilson's score interval; NaN for `n = 0`."""
    if n == 0:
        return Rate(np.nan, np.nan, np.nan, 0)
    # Not from `stats.binomtest`, which computes an exact p value on the way: 2 ms where this takes some microseconds.
    z, value = special.ndtri((1 + confidence) / 2), float(successes / n)
    center, half = value + z**2 / (2 * n), z * np.sqrt(value * (1 - value) / n + z**2 / (4 * n**2))
    low = 0.0 if successes == 0 else float((center - half) / (1 + z**2 / n))
    high = 1.0 if successes == n else float((center + half) / (1 + z**2 / n))
    return Rate(value, low, high, int(n))


def difference_of_rates(a: Rate, b: Rate) -> Rate:
    """Return `a - b` of two independent rates with Newcombe's hybrid score interval (1998, method 10)."""
    value = a.value - b.value
    low = value - np.hypot(a.value - a.low, b.high - b.value)
    high = value + np.hypot(a.high - a.value, b.value - b.low)
    return Rate(value, float(low), float(high), min(a.n, b.n))


def paired_difference_of_rates(a: ArrayLike, b: ArrayLike, *, confidence: float = 0.95) -> Rate:
    """Return `mean(a) - mean(b)` of two yes/no answers (n,), (n,) bool on the same n cases, with a score interval.

    Newcombe's hybrid of two Wilson intervals, corrected for the correlation of the pairs. Unlike the t interval of
    the differences it keeps its width where all pairs agree: n equal answers leave room for about 4 / n of unequal
    ones. Raises ValueError where the lengths differ.

    References
    ----------
    Newcombe, "Improved confidence intervals for the difference between binomial proportions based on paired data",
    Statistics in Medicine 17, 1998, method 10.
    """
    first, second = np.asarray(a, dtype=bool), np.asarray(b, dtype=bool)
    if first.shape != second.shape:
        raise ValueError(f"expected pairs, got {first.shape} and {second.shape}; take the cases that both have")
    n = first.size
    rate_a, rate_b = (wilson(int(answers.sum()), n, confidence=confidence) for answers in (first, second))
    both, neither = int((first & second).sum()), int((~first & ~second).sum())
    only_a, only_b = int((first & ~second).sum()), int((~first & second).sum())
    covariance = float(both * neither - only_a * only_b)
    if covariance > 0:
        covariance = max(covariance - n / 2, 0.0)
    scale = np.sqrt(float((both + only_a) * (only_b + neither)) * ((both + only_b) * (only_a + neither)))
    phi = covariance / scale if scale > 0 else 0.0

    def distance(above: float, below: float) -> float:
        return float(np.sqrt(max(above**2 - 2 * phi * above * below + below**2, 0)))

    value = rate_a.value - rate_b.value
    low = value - distance(rate_a.value - rate_a.low, rate_b.high - rate_b.value)
    high = value + distance(rate_a.high - rate_a.value, rate_b.value - rate_b.low)
    return Rate(value, low, high, n)


def mean(values: ArrayLike, *, confidence: float = 0.95, bounds: tuple[float, float] = (-np.inf, np.inf)) -> Rate:
    """Return the mean of `values` (n,) with Student's t interval; NaN for n = 0 and for values that are not finite.

    A constant sample (n = 1 among them) says nothing about the spread, and its t interval would be a point. There
    the interval allows for the share of other values that n equal ones leave room for (Wilson's bound), each at
    the worst end of `bounds`, the range of a value; without bounds it is infinite.
    """
    sample = np.asarray(values, dtype=float)
    n = sample.size
    if n == 0 or not np.isfinite(sample).all():
        return Rate(np.nan, np.nan, np.nan, n)
    center = float(sample.mean())
    if np.ptp(sample) <= 1e-12 * np.abs(sample).max():
        others = wilson(0, n, confidence=confidence).high
        return Rate(center, center - others * (center - bounds[0]), center + others * (bounds[1] - center), n)
    half = float(stats.t.ppf((1 + confidence) / 2, n - 1) * sample.std(ddof=1) / np.sqrt(n))
    return Rate(center, center - half, center + half, n)


def roc_auc(benign: ArrayLike, adversarial: ArrayLike, *, confidence: float = 0.95) -> Rate:
    """Return the area under the ROC curve of two samples of scores, higher meaning adversarial.

    The interval is that of `area`. It takes all scores for independent. NaN where a sample is empty or holds NaN.
    """
    negative, positive = np.asarray(benign, dtype=float), np.asarray(adversarial, dtype=float)
    m, n = negative.size, positive.size
    if m == 0 or n == 0 or np.isnan(negative).any() or np.isnan(positive).any():
        return Rate(np.nan, np.nan, np.nan, m + n)
    above = float(stats.mannwhitneyu(positive, negative, method="asymptotic").statistic)
    return area(above / (m * n), m, n, confidence=confidence)


def area(value: float, m: int, n: int, *, confidence: float = 0.95) -> Rate:
    """Return an area under the ROC curve of m benign and n adversarial scores with Newcombe's score interval.

    It keeps its width when the two samples separate completely, where bootstrap and DeLong intervals collapse to a
    point. NaN where a sample is empty or the area is NaN.

    References
    ----------
    Newcombe, "Confidence intervals for an effect size measure based on the Mann-Whitney statistic, part 2",
    Statistics in Medicine 25, 2006, method 5.
    """
    if m == 0 or n == 0 or np.isnan(value):
        return Rate(np.nan, np.nan, np.nan, m + n)
    z = stats.norm.ppf((1 + confidence) / 2)
    pairs = (m + n) / 2 - 1

    def excess(candidate: float) -> float:
        spread = 1 + pairs * ((1 - candidate) / (2 - candidate) + candidate / (1 + candidate))
        return float(abs(value - candidate) - z * np.sqrt(candidate * (1 - candidate) * spread / (m * n)))

    # At the area itself the excess is negative, but exactly 0 where the area is 0 or 1: step inside.
    inside = min(max(value, 1e-9), 1 - 1e-9)
    low = 0.0 if value == 0 else optimize.brentq(excess, 0.0, inside)
    high = 1.0 if value == 1 else optimize.brentq(excess, inside, 1.0)
    return Rate(value, float(low), float(high), m + n)
