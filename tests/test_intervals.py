"""Intervals against closed forms, published numbers, and their coverage in simulation."""

import math

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import roc_auc_score

from nbsupport import intervals
from nbsupport.intervals import Rate


def wilson_formula(k, n, confidence):
    z = stats.norm.ppf((1 + confidence) / 2)
    center = (k + z**2 / 2) / (n + z**2)
    half = z / (n + z**2) * math.sqrt(k * (n - k) / n + z**2 / 4)
    return center - half, center + half


def enough_covered(covered, trials, nominal=0.95, slack=0.02):
    """Return whether `covered` of `trials` is compatible with a coverage of at least `nominal - slack`."""
    return covered >= stats.binom.ppf(1e-4, trials, nominal - slack)


@pytest.mark.parametrize(("k", "n"), [(0, 1), (1, 1), (0, 30), (30, 30), (7, 19), (95, 100), (5000, 10000)])
@pytest.mark.parametrize("confidence", [0.9, 0.95, 0.99])
def test_wilson_is_the_closed_form(k, n, confidence):
    rate = intervals.wilson(k, n, confidence=confidence)
    assert (rate.value, rate.n) == (k / n, n)
    assert (rate.low, rate.high) == pytest.approx(wilson_formula(k, n, confidence), abs=1e-12)
    assert 0 <= rate.low <= rate.value <= rate.high <= 1


def test_wilson_takes_numpy_counts_and_gives_python_numbers():
    rate = intervals.wilson(np.int64(3), np.int64(7))
    assert {type(rate.value), type(rate.low), type(rate.high)} == {float}
    assert type(rate.n) is int


@pytest.mark.parametrize(
    "rate",
    [
        intervals.wilson(0, 0),
        intervals.mean([]),
        intervals.mean([0.1, math.nan, 0.3]),
        intervals.mean([0.1, math.inf]),
        intervals.roc_auc([], [0.5]),
        intervals.roc_auc([0.5], []),
        intervals.roc_auc([0.5, math.nan], [0.5]),
        intervals.roc_auc([0.5], [math.nan]),
        intervals.paired_difference_of_rates([], []),
        intervals.difference_of_rates(intervals.wilson(0, 0), intervals.wilson(1, 2)),
        intervals.difference_of_rates(intervals.wilson(1, 2), intervals.wilson(0, 0)),
    ],
)
def test_what_was_not_measured_is_nan(rate):
    assert math.isnan(rate.value)
    assert math.isnan(rate.low)
    assert math.isnan(rate.high)


def test_difference_of_rates_reproduces_newcombe_1998():
    # Statistics in Medicine 17, 873-890, table II, case a: 56/70 against 48/80, method 10.
    difference = intervals.difference_of_rates(intervals.wilson(56, 70), intervals.wilson(48, 80))
    assert (difference.low, difference.high) == pytest.approx((0.0524, 0.3339), abs=5e-5)
    assert (difference.value, difference.n) == (pytest.approx(0.2), 70)


def test_paired_difference_of_rates_reproduces_newcombe_1998():
    # Statistics in Medicine 17, 2635-2650: 36 both, 12 the first alone, 2 the second alone, method 10.
    first = np.repeat([True, True, False], [36, 12, 2])
    second = np.repeat([True, False, True], [36, 12, 2])
    difference = intervals.paired_difference_of_rates(first, second)
    assert (difference.low, difference.high) == pytest.approx((0.0569, 0.3404), abs=5e-5)
    assert (difference.value, difference.n) == (pytest.approx(0.2), 50)


@pytest.mark.parametrize("share", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("n", [1, 30, 100, 1000])
def test_paired_difference_keeps_its_width_where_all_pairs_agree(share, n):
    answers = np.arange(n) < share * n
    difference = intervals.paired_difference_of_rates(answers, answers)
    assert difference.value == 0
    assert difference.low == pytest.approx(-difference.high)
    # No exact interval can exclude discordant pairs rarer than 1 - .05 ** (1 / n) each way.
    assert difference.high > (1 - 0.05 ** (1 / n)) / 2


def test_paired_difference_changes_sign_with_its_arguments():
    generator = np.random.default_rng(0)
    a, b = generator.random((2, 40)) < [[0.8], [0.6]]
    forward, backward = intervals.paired_difference_of_rates(a, b), intervals.paired_difference_of_rates(b, a)
    assert (forward.low, forward.high) == pytest.approx((-backward.high, -backward.low))


def test_paired_difference_refuses_unequal_lengths():
    with pytest.raises(ValueError, match=r"expected pairs, got \(2,\) and \(3,\); take the cases that both have"):
        intervals.paired_difference_of_rates([True, False], [True, False, True])


@pytest.mark.parametrize(
    ("both", "only_a", "only_b"), [(0.9, 0.04, 0.02), (0.3, 0.3, 0.1), (0.98, 0.0, 0.02), (0.05, 0.6, 0.0)]
)
def test_paired_difference_covers(both, only_a, only_b):
    generator = np.random.default_rng(1)
    trials = 400
    cells = generator.choice(4, p=[both, only_a, only_b, 1 - both - only_a - only_b], size=(trials, 60))
    rates = [intervals.paired_difference_of_rates(row <= 1, (row == 0) | (row == 2)) for row in cells]
    assert enough_covered(sum(rate.low <= only_a - only_b <= rate.high for rate in rates), trials)


def test_difference_of_rates_covers():
    generator = np.random.default_rng(2)
    trials, n = 400, 50
    rates = [
        intervals.difference_of_rates(intervals.wilson(a, n), intervals.wilson(b, n))
        for a, b in zip(generator.binomial(n, 0.95, trials), generator.binomial(n, 0.7, trials), strict=True)
    ]
    assert enough_covered(sum(rate.low <= 0.25 <= rate.high for rate in rates), trials)


@pytest.mark.parametrize("n", [2, 3, 30])
def test_mean_is_the_t_interval(n):
    values = np.random.default_rng(n).normal(size=n)
    rate = intervals.mean(values, confidence=0.9)
    low, high = stats.t.interval(0.9, n - 1, values.mean(), stats.sem(values))
    assert (rate.value, rate.low, rate.high, rate.n) == pytest.approx((values.mean(), low, high, n))


@pytest.mark.parametrize("values", [[0.3], [0.1] * 40, [0.0] * 40])
def test_a_constant_sample_bounds_nothing_by_itself(values):
    rate = intervals.mean(values)
    assert rate == Rate(pytest.approx(values[0]), -math.inf, math.inf, len(values))


@pytest.mark.parametrize(("value", "n"), [(0.1, 40), (1.0, 30), (-1.0, 30), (0.0, 1)])
def test_a_constant_sample_leaves_room_for_unseen_values_within_its_bounds(value, n):
    rate = intervals.mean([value] * n, bounds=(-1, 1))
    unseen = wilson_formula(0, n, 0.95)[1]
    assert rate.low == pytest.approx((1 - unseen) * value - unseen)
    assert rate.high == pytest.approx((1 - unseen) * value + unseen)


def test_mean_covers():
    generator = np.random.default_rng(3)
    trials = 400
    rates = [intervals.mean(values) for values in generator.uniform(size=(trials, 30))]
    assert enough_covered(sum(rate.low <= 0.5 <= rate.high for rate in rates), trials, slack=0.01)


@pytest.mark.parametrize("shift", [0.0, 0.5, 2.0, -1.0])
def test_roc_auc_agrees_with_scikit_learn_with_ties(shift):
    generator = np.random.default_rng(4)
    benign, adversarial = generator.normal(size=40).round(1), (shift + generator.normal(size=30)).round(1)
    expected = roc_auc_score(np.repeat([0, 1], [40, 30]), np.concatenate((benign, adversarial)))
    area = intervals.roc_auc(benign, adversarial)
    assert (area.value, area.n) == (pytest.approx(expected), 70)
    assert 0 <= area.low < area.value < area.high <= 1


@pytest.mark.parametrize(
    ("benign", "adversarial", "value"),
    [([0.0] * 40, [1.0] * 40, 1.0), ([1.0] * 40, [0.0] * 40, 0.0), ([0.5] * 40, [0.5] * 40, 0.5), ([0], [1], 1.0)],
)
def test_roc_auc_keeps_its_width_at_its_extremes(benign, adversarial, value):
    area = intervals.roc_auc(benign, adversarial)
    assert area.value == value
    assert area.high - area.low > 0.04
    assert (area.high == 1) == (value == 1)
    assert (area.low == 0) == (value == 0)


@pytest.mark.parametrize("size", [3000, 20000])
def test_roc_auc_of_one_misplaced_score_among_very_many(size):
    area = intervals.roc_auc(np.arange(size), np.append(np.arange(size, 2 * size - 1), size - 1.5))
    assert 0.999 < area.low < area.value < area.high <= 1
    mirrored = intervals.roc_auc(np.append(np.arange(size, 2 * size - 1), size - 1.5), np.arange(size))
    assert mirrored.low == pytest.approx(1 - area.high, abs=1e-9)


@pytest.mark.parametrize("separation", [0.0, 1.0, 2.5])
def test_roc_auc_covers(separation):
    generator = np.random.default_rng(5)
    trials = 300
    true = stats.norm.cdf(separation / math.sqrt(2))
    samples = generator.normal(size=(trials, 2, 40))
    rates = [intervals.roc_auc(benign, adversarial + separation) for benign, adversarial in samples]
    assert enough_covered(sum(rate.low <= true <= rate.high for rate in rates), trials)


@pytest.mark.parametrize("scores", [([0.1, 0.4, 0.4], [0.3, 0.4, 0.9]), ([0.0] * 40, [1.0] * 30), ([0.5], [0.2])])
@pytest.mark.parametrize("confidence", [0.5, 0.95])
def test_an_area_has_the_interval_of_its_scores(scores, confidence):
    expected = intervals.roc_auc(*scores, confidence=confidence)
    assert intervals.area(expected.value, *map(len, scores), confidence=confidence) == expected


@pytest.mark.parametrize("arguments", [(math.nan, 3, 3), (0.5, 0, 3), (0.5, 3, 0)])
def test_an_area_without_scores_is_nan(arguments):
    assert math.isnan(intervals.area(*arguments).low)
