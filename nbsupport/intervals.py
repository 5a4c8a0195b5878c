"""Intervals for what the suite reports: rates, areas under the ROC curve, means of paired differences."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, special, stats

_ENDS = (0.025, 0.975)  # the quantiles of a bootstrap between which its 95 % interval lies


@dataclass(frozen=True)
class Rate:
    """A measured value with its interval and the number of observations; an empty sample gives NaN."""

    value: float
    low: float
    high: float
    n: int


def per_cent(share: float) -> str:
    """Return `share` in per cent, such as "12"; one near 0 or 1 has the decimals that tell it from them: "99.5"."""
    texts = (f"{100 * share:.{decimals}f}" for decimals in range(8))
    return next((text for text in texts if share in (0, 1) or float(text) not in (0, 100)), f"{100 * share:.0f}")


def wilson(successes: int, n: int, *, confidence: float = 0.95) -> Rate:
    """Return `successes / n` with Wilson's score interval; NaN for `n = 0`."""
    if n == 0:
        return Rate(np.nan, np.nan, np.nan, 0)
    return _wilson(float(successes / n), int(n), confidence)


def _wilson(value: float, n: int, confidence: float) -> Rate:
    """Return a share `value` of `n` > 0 with Wilson's interval."""
    # Not from `stats.binomtest`, which computes an exact p value on the way: 2 ms where this takes some microseconds.
    z = special.ndtri((1 + confidence) / 2)
    center, half = value + z**2 / (2 * n), z * np.sqrt(value * (1 - value) / n + z**2 / (4 * n**2))
    low = 0.0 if value == 0 else float((center - half) / (1 + z**2 / n))
    high = 1.0 if value == 1 else float((center + half) / (1 + z**2 / n))
    return Rate(value, low, high, n)


def share_of_clusters(answers: ArrayLike, clusters: ArrayLike, *, confidence: float = 0.95) -> Rate:
    """Return the share of `answers` (m,) bool that are true, where several may be about one image.

    `clusters` (m,) names the image of each. The interval is Wilson's for n images, as if all answers about an image
    were the same: 222 versions of 40 images say no more than 40 images do. Raises ValueError where the lengths differ.
    """
    said, of = np.asarray(answers, dtype=bool), np.asarray(clusters)
    if said.shape != of.shape:
        raise ValueError(f"expected an image for each answer, got {said.shape} answers and {of.shape} images")
    n = len(np.unique(of))
    if n == 0:
        return Rate(np.nan, np.nan, np.nan, 0)
    return _wilson(float(said.mean()), n, confidence)


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


@dataclass(frozen=True, eq=False)
class Folds:
    """Scores from a cross-validation over images, each by a detector that did not see the image.

    Attributes
    ----------
    scores
        (S, m) of m versions of images, by each of S seeds; higher means adversarial.
    adversarial
        (m,) bool: which versions are adversarial.
    folds, images
        (m,) each: the fold of each version, and its image. All versions of an image are in one fold.
    """

    scores: NDArray[np.float64]
    adversarial: NDArray[np.bool_]
    folds: NDArray[np.int64]
    images: NDArray[np.int64]


def roc_auc_of_folds(tested: Folds, *, resamples: int = 1000) -> Rate:
    """Return the area under the ROC curve, the mean over folds (and seeds) that hold both kinds; n counts images.

    Each end of the 95 % interval is the wider one of two: of a bootstrap over images, in which all versions of an image
    are drawn together, within its fold; and of Newcombe's with as many observations as there are images, which keeps
    its width where the kinds separate completely. NaN where no fold holds both kinds.
    """
    areas = _areas(tested, resamples)
    value = float(areas[0])
    benign, adversarial = (len(np.unique(tested.images[side])) for side in (~tested.adversarial, tested.adversarial))
    n = len(np.unique(tested.images))
    if np.isnan(value):
        return Rate(np.nan, np.nan, np.nan, n)
    ends = np.nanquantile(areas[1:], _ENDS)
    usual = area(value, benign, adversarial)
    return Rate(value, min(usual.low, float(ends[0])), max(usual.high, float(ends[1])), n)


def difference_of_roc_auc(a: Folds, b: Folds, *, resamples: int = 1000) -> Rate:
    """Return the area of `a` minus that of `b` on the same versions of images.

    The 95 % interval is of a bootstrap over images, the same for both. Two areas of 1 in all folds differ by 0
    without any width.
    """
    change = _areas(a, resamples) - _areas(b, resamples)
    ends = np.nanquantile(change[1:], _ENDS)
    return Rate(float(change[0]), float(ends[0]), float(ends[1]), len(np.unique(a.images)))


def _areas(tested: Folds, resamples: int) -> NDArray[np.float64]:
    """Return the mean area over folds (1 + resamples,): with every image once, then with images drawn at random."""
    total, folds = np.zeros((2, 1 + resamples))
    for rows, image, drawn in _drawn(tested, resamples):
        bad, scores = tested.adversarial[rows], tested.scores[:, rows]
        won = np.zeros((drawn.shape[1],) * 2)  # of each adversarial and each benign image: how often it scores higher
        for positive, negative in zip(scores[:, bad], scores[:, ~bad], strict=True):
            higher = (positive[:, None] > negative) + 0.5 * (positive[:, None] == negative)
            np.add.at(won, (image[bad][:, None], image[~bad]), higher / len(scores))
        sides = [drawn @ np.bincount(image[side], minlength=drawn.shape[1]) for side in (bad, ~bad)]
        pairs = sides[0] * sides[1]
        with np.errstate(invalid="ignore"):
            total += np.where(pairs > 0, ((drawn @ won) * drawn).sum(1) / pairs, 0)
        folds += pairs > 0
    with np.errstate(invalid="ignore"):
        return np.asarray(total / folds)


def _drawn(tested: Folds, resamples: int) -> Iterator[tuple[NDArray[Any], NDArray[Any], NDArray[Any]]]:
    """Yield of each fold its rows, the number of each row's image in it, and how often each image is drawn.

    The last is (1 + resamples, images): once each, then at random, the same in every call.
    """
    generator = np.random.default_rng(0)
    for fold in np.unique(tested.folds):
        rows = (tested.folds == fold).nonzero()[0]
        images, number = np.unique(tested.images[rows], return_inverse=True)
        chances = np.full(len(images), 1 / len(images))
        yield rows, number, np.vstack([np.ones(len(images)), generator.multinomial(len(images), chances, resamples)])


def roc_of_folds(tested: Folds, false_positive_rates: ArrayLike, *, resamples: int = 200) -> NDArray[np.float64]:
    """Return the true positive rate (3, P) at each of P false positive rates: the mean over folds, its low, its high.

    The ends are those of the 95 % interval of a pointwise bootstrap over images, as in `roc_auc_of_folds`. NaN where no
    fold holds both kinds.
    """
    at = np.asarray(false_positive_rates, dtype=float)
    total, folds = np.zeros((1 + resamples, len(at))), np.zeros((1 + resamples, 1))
    for rows, image, drawn in _drawn(tested, resamples):
        bad = tested.adversarial[rows]
        weights = drawn[:, image]
        known = (weights[:, bad].sum(1) > 0) & (weights[:, ~bad].sum(1) > 0)
        for scores in tested.scores[:, rows]:
            order = np.argsort(-scores, kind="stable")
            last = np.append(np.diff(scores[order]) != 0, True)  # of scores that are equal
            false, true = ((weights * side)[:, order].cumsum(1)[:, last] for side in (~bad, bad))
            for i in known.nonzero()[0]:
                x, y = (np.append(0, rate[i] / rate[i, -1]) for rate in (false, true))
                total[i] += np.interp(at, x, y) / len(tested.scores)
        folds[:, 0] += known
    with np.errstate(invalid="ignore"):
        curves = total / folds
    if not folds[0, 0]:
        return np.full((3, len(at)), np.nan)
    return np.vstack([curves[:1], np.nanquantile(curves[1:], _ENDS, axis=0)])
