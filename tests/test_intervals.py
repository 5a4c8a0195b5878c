"""Intervals against closed forms, published numbers, and their coverage in simulation."""

import dataclasses
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


@pytest.mark.parametrize(
    ("share", "text"),
    [
        (0.0, "0"),
        (1.0, "100"),
        (0.5, "50"),
        (0.994, "99"),
        (199 / 200, "99.5"),
        (9999 / 10000, "99.99"),
        (1 / 1000, "0.1"),
    ],
)
def test_only_all_of_them_are_100_per_cent(share, text):
    assert intervals.per_cent(share) == text


def test_a_share_that_is_not_known_is_no_number():
    assert intervals.per_cent(math.nan) == "nan"


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


# Cross-validation over images


@pytest.mark.parametrize(("k", "n"), [(0, 5), (3, 40), (38, 40), (40, 40)])
def test_one_answer_an_image_has_wilsons_interval(k, n):
    answers = np.arange(n) < k
    found, expected = intervals.share_of_clusters(answers, np.arange(n)), intervals.wilson(k, n)
    assert (found.value, found.n) == (expected.value, expected.n)
    assert [found.low, found.high] == pytest.approx([expected.low, expected.high], abs=1e-12)


def test_more_versions_of_an_image_do_not_narrow_the_interval():
    answers, images = np.array([True, True, False, True]), np.array([4, 7, 8, 9])
    once = intervals.share_of_clusters(answers, images)
    again = intervals.share_of_clusters(np.tile(answers, 5), np.tile(images, 5))
    assert again == once
    assert math.isnan(intervals.share_of_clusters([], []).value)
    with pytest.raises(ValueError, match="expected an image for each answer"):
        intervals.share_of_clusters([True], [1, 2])


def crossed(images=60, folds=5, versions=1, shift=1.0, seed=0, seeds=1):
    """Scores of benign images and `versions` adversarial ones of each, which share half of their luck."""
    generator = np.random.default_rng(seed)
    luck = generator.normal(size=images)
    index = np.tile(np.arange(images), 1 + versions)
    adversarial = np.repeat(np.arange(1 + versions) > 0, images)
    scores = (luck[index] + generator.normal(size=(seeds, len(index)))) / np.sqrt(2) + shift * adversarial
    return intervals.Folds(scores, adversarial, index % folds, index)


def slow_area(one):
    """The mean over folds and seeds of the share of pairs in which the adversarial image has the higher score."""
    areas = []
    for scores in one.scores:
        for fold in range(int(one.folds.max()) + 1):
            sides = [scores[(one.folds == fold) & (one.adversarial == side)] for side in (False, True)]
            won = [1.0 if bad > good else 0.5 if bad == good else 0.0 for good in sides[0] for bad in sides[1]]
            if won:
                areas.append(sum(won) / len(won))
    return sum(areas) / len(areas)


@pytest.mark.parametrize("options", [{}, {"versions": 4}, {"seeds": 3, "versions": 2}, {"images": 7, "folds": 3}])
def test_the_area_over_folds_is_that_of_a_slow_loop(options):
    one = crossed(**options)
    one = dataclasses.replace(one, scores=one.scores.round(1))  # some are equal
    area = intervals.roc_auc_of_folds(one, resamples=20)
    assert area.value == pytest.approx(slow_area(one), abs=1e-12)
    assert area.low <= area.value <= area.high
    assert area.n == options.get("images", 60)


def test_a_fold_of_one_kind_is_left_out():
    one = crossed(images=40, folds=4)
    keep = ~((one.folds == 2) & one.adversarial)
    cut = intervals.Folds(one.scores[:, keep], one.adversarial[keep], one.folds[keep], one.images[keep])
    assert intervals.roc_auc_of_folds(cut, resamples=20).value == pytest.approx(slow_area(cut), abs=1e-12)
    benign = ~one.adversarial
    none = intervals.Folds(one.scores[:, benign], one.adversarial[benign], one.folds[benign], one.images[benign])
    assert math.isnan(intervals.roc_auc_of_folds(none, resamples=20).value)
    assert np.isnan(intervals.roc_of_folds(none, [0.1, 0.5], resamples=5)).all()


def test_the_interval_of_the_area_covers_where_versions_share_an_image():
    # Two normal scores whose means differ by 1 are ordered rightly with probability Phi(1 / sqrt(2)).
    true, trials = stats.norm.cdf(1 / np.sqrt(2)), 150
    rates = [intervals.roc_auc_of_folds(crossed(versions=5, seed=seed), resamples=200) for seed in range(trials)]
    assert enough_covered(sum(rate.low <= true <= rate.high for rate in rates), trials)


def test_an_area_of_one_keeps_a_width_that_depends_on_images_and_not_on_versions():
    few, many = (intervals.roc_auc_of_folds(crossed(versions=versions, shift=100.0)) for versions in (1, 9))
    assert few.value == many.value == few.high == 1.0
    assert few.low == many.low == pytest.approx(intervals.roc_auc(np.zeros(60), np.ones(60)).low)


def test_the_difference_of_two_areas():
    good, bad = crossed(shift=1.5, versions=2), crossed(shift=0.2, versions=2)
    found = intervals.difference_of_roc_auc(good, bad)
    assert found.value == pytest.approx(slow_area(good) - slow_area(bad))
    assert 0 < found.low < found.value < found.high
    assert intervals.difference_of_roc_auc(good, good) == intervals.Rate(0.0, 0.0, 0.0, 60)


@pytest.mark.parametrize("options", [{}, {"seeds": 2, "versions": 3}])
def test_the_mean_roc_curve_has_the_mean_area(options):
    one, at = crossed(**options), np.linspace(0, 1, 4001)
    mean, low, high = intervals.roc_of_folds(one, at, resamples=50)
    assert np.trapezoid(mean, at) == pytest.approx(slow_area(one), abs=2e-3)
    assert (np.diff(mean) >= 0).all()
    assert (low <= mean + 0.2).all()
    assert ((low <= high) & (high <= 1)).all()
    assert mean[-1] == 1


def test_the_roc_curve_of_one_fold_by_hand():
    scores, adversarial = np.array([[0.1, 0.4, 0.3, 0.8]]), np.array([False, False, True, True])
    one = intervals.Folds(scores, adversarial, np.zeros(4, dtype=int), np.arange(4))
    assert intervals.roc_of_folds(one, [0.0, 0.25, 0.5, 1.0], resamples=5)[0].tolist() == [0.5, 0.5, 1.0, 1.0]
