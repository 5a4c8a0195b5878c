"""Intervals for what the suite reports: rates, areas under the ROC curve, means of paired differences."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy import optimize, stats


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
    interval = stats.binomtest(successes, n).proportion_ci(confidence, method="wilson")
    return Rate(successes / n, float(interval.low), float(interval.high), n)


def difference_of_rates(a: Rate, b: Rate) -> Rate:
    """Return `a - b` of two independent rates with Newcombe's hybrid score interval (1998, method 10)."""
    value = a.value - b.value
    low = value - np.hypot(a.value - a.low, b.high - b.value)
    high = value + np.hypot(a.high - a.value, b.value - b.low)
    return Rate(value, float(low), float(high), min(a.n, b.n))


def mean(values: ArrayLike, *, confidence: float = 0.95) -> Rate:
    """Return the mean of `values` (n,) with Student's t interval; the interval is infinite for n < 2."""
    sample = np.asarray(values, dtype=float)
    n = sample.size
    if n == 0:
        return Rate(np.nan, np.nan, np.nan, 0)
    if n == 1:
        return Rate(float(sample[0]), -np.inf, np.inf, 1)
    half = stats.t.ppf((1 + confidence) / 2, n - 1) * sample.std(ddof=1) / np.sqrt(n)
    return Rate(float(sample.mean()), float(sample.mean() - half), float(sample.mean() + half), n)


def roc_auc(benign: ArrayLike, adversarial: ArrayLike, *, confidence: float = 0.95) -> Rate:
    """Return the area under the ROC curve of two samples of scores, higher meaning adversarial.

    The interval is Newcombe's score interval (Statistics in Medicine 25, 2006, method 5): it keeps its width
    when the two samples separate completely, where bootstrap and DeLong intervals collapse to a point.
    """
    negative, positive = np.asarray(benign, dtype=float), np.asarray(adversarial, dtype=float)
    m, n = negative.size, positive.size
    if m == 0 or n == 0:
        return Rate(np.nan, np.nan, np.nan, m + n)
    area = float(stats.mannwhitneyu(positive, negative, method="asymptotic").statistic) / (m * n)
    z = stats.norm.ppf((1 + confidence) / 2)
    pairs = (m + n) / 2 - 1

    def excess(candidate: float) -> float:
        spread = 1 + pairs * ((1 - candidate) / (2 - candidate) + candidate / (1 + candidate))
        return float(abs(area - candidate) - z * np.sqrt(candidate * (1 - candidate) * spread / (m * n)))

    # At the area itself the excess is negative, but exactly 0 where the area is 0 or 1: step inside.
    low = 0.0 if area == 0 else optimize.brentq(excess, 1e-12, area - 1e-9)
    high = 1.0 if area == 1 else optimize.brentq(excess, area + 1e-9, 1 - 1e-12)
    return Rate(area, float(low), float(high), m + n)
