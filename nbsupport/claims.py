"""The claims of the talk and two of ours, each with a verdict from our own measurements."""

import math
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy import optimize, stats

from nbsupport import intervals, suite
from nbsupport.intervals import Rate
from nbsupport.presets import MODELS, Settings
from nbsupport.suite import BENIGN, CONTROLS, OPTMARGINS

CLAIMS = {
    1: "OPTMARGIN's success is high",
    2: "OPTBRITTLE's RMS is smaller",
    3: "PGD training hinders FGSM",
    4: "vote keeps, restores accuracy",
    5: "vote fails most on OPTMARGIN",
    6: "boundaries nearer than benign",
    7: "boundaries purer, one class",
    8: "detector's AUC is high",
    9: "vote mostly undoes attacks",
    10: "detector withstands attackers",
    11: "vote withstands attackers",
}
COLUMNS = (
    *("claim", "model", "examples", "statement", "statistic", "threshold", "low", "high", "n", "verdict"),
    *("verdict_holm", "by_construction", "verdict_if_all_for", "verdict_if_all_against", "n_needed", "decides"),
    "converged",
)
NOT_ATTACKS = (BENIGN, *CONTROLS, "mimic")  # mimic is made to undo claims 6 and 7; claim 10 is about it
FEWEST = 30  # observations for a verdict
LEVEL = 0.05  # one minus the confidence of every interval
UNFINISHED = 0.05  # of the images: with more searches that had not converged, a row says so

_OTHERS = ("FGSM", "PGD", "OPTBRITTLE", "OPTSTRONG")  # which OPTMARGIN is compared with
_ATTACKED = {10: "detector", 11: "vote"}  # the defence of each of our claims
_RATE = 0.05  # of false positives
_LEAST = 1e-12  # the least p that is told apart
_NUMBERS = ["y", "rms", "point", "vote", "median_distance", "share_below_region_line", "purity_1"]  # of an image
_SUBSET = "whatever fools all of OPTMARGIN's views fools the image itself, so OPTBRITTLE needs no more"
_ON_BOUNDARY = "the image lies on the boundary, so that many of its rays cross it at once"

Sets = Mapping[str, pd.DataFrame]  # of one model, by examples
Interval = Callable[..., Rate]  # takes `confidence`: the statistic with its interval


class Claim(NamedTuple):
    """One row before its verdict: a statistic with its intervals is said to lie above a threshold."""

    claim: int  # its number
    model: str
    examples: str
    statement: str
    known: Interval  # over the images whose answer is known
    threshold: float
    unknown: tuple[Interval, ...] = ()  # with all unknown images for the claim, and with all against it
    decides: bool = True
    by_construction: str | None = None


# Verdicts


def verdict(statistic: Rate, threshold: float) -> str:
    """Return what is to be said of the claim that `statistic` lies above `threshold`.

    "holds" where the whole interval lies above, "fails" where it lies below, "undecided" otherwise, where fewer
    than 30 observations were made, and where a number is missing.
    """
    if statistic.n < FEWEST or any(map(math.isnan, (statistic.value, statistic.low, statistic.high))):
        return "undecided"
    if statistic.low > threshold:
        return "holds"
    return "fails" if statistic.high < threshold else "undecided"


def p_value(interval: Interval, threshold: float) -> float:
    """Return the smallest alpha at which the interval of confidence 1 - alpha excludes `threshold`.

    It is two-sided, never below 1e-12, 1 where no interval excludes the threshold, and NaN for what was not measured.
    """
    value = interval(confidence=1 - LEVEL).value
    if math.isnan(value) or value == threshold:
        return math.nan if math.isnan(value) else 1.0

    def room(log_alpha: float) -> float:  # between the threshold and the end of the interval that faces it
        rate = interval(confidence=1 - math.exp(log_alpha))
        return rate.low - threshold if value > threshold else threshold - rate.high

    narrow, wide = math.log(0.99), math.log(_LEAST)
    if room(narrow) <= 0:
        return 1.0
    return _LEAST if room(wide) > 0 else math.exp(optimize.brentq(room, wide, narrow, xtol=1e-9))


def holm(p: ArrayLike) -> NDArray[np.float64]:
    """Return the p values (n,) adjusted for their number: those below alpha keep the chance of any error below alpha.

    References
    ----------
    Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    values = np.asarray(p, dtype=float)
    order = values.argsort()
    adjusted = np.empty_like(values)
    adjusted[order] = np.maximum.accumulate(values[order] * np.arange(len(values), 0, -1)).clip(max=1)
    return adjusted


# The table


def table(
    images: pd.DataFrame,
    detectors: pd.DataFrame | None = None,
    adaptive: pd.DataFrame | None = None,
    *,
    pixel_max: float,
) -> pd.DataFrame:
    """Return one row a (claim, model, examples, statement), columns `COLUMNS`, of all that was measured.

    Every claim says that a statistic lies above a threshold; `low` and `high` are its 95 % interval, `n` the number
    of images (or pairs) in it. Rates have Wilson's interval, differences of rates Newcombe's (paired where both
    are of the same images), means of paired differences Student's.

    - Claim 4, as the region table: all benign images, and all attacked images with what the attack returned.
    - Claims 2, 6, 7 and 9, on adversarial examples: images on which the attack (claim 2: both attacks) succeeded.
    - Claim 3 compares the two models, as independent samples, and is filed under `pgd`.
    - Claim 5, rows named after both sets: over the images that both attacks fooled, and beside it over all attacked
      images. Where the vote's accuracy on the other attack lies below .1 with its whole interval, also the RMS.
    - Claim 6: where both medians are infinite it is unknown which is nearer.
    - Claim 7: pairs in which a version met no boundary are left out of the difference; their share is unknown.
    - Claim 8: the area of the network, tested on the attack that it was trained on; beside it the baselines, and the
      share of each control that the network of all attacks lets pass; `n` is the smaller class.
    - Claims 10 and 11: one minus the success of the best attack for each image, at 5 % false positives.

    `verdict` is the plain one. Where images are unknown it must come out the same without them, with all of them for
    the claim, and with all of them against it. `verdict_holm` is corrected over the rows with at least 30 observations
    that could have come out otherwise; in other rows it is the plain one. A row's p is the smallest alpha whose
    interval excludes the threshold; where images are unknown, the largest of the three. The area's interval is that of
    detector.csv at 95 % (a bootstrap's or Newcombe's); other confidences stretch it as they stretch Newcombe's.

    `n_needed` is about how many observations would decide the row if its statistic stayed what it is: 30 at least,
    empty where none would. `decides` is False for rows that stand beside those that the claim is about. `converged` is
    the share of attacked images whose search had converged, the least of the attacks that the row is about; empty for
    claims 8, 10 and 11 on several attacks.

    Parameters
    ----------
    images
        One row an image, as `tables.images` returns them.
    detectors
        Rows of detector.csv; None: claim 8 has no rows.
    adaptive
        Rows of adaptive.csv; None: claims 10 and 11 have no rows.
    pixel_max
        The data set's own unit, in which `rms` and with it the statistics of claims 2 and 5 are stated.
    """
    sets = by_set(images)
    claims = [claim for model, of_model in sets.items() for claim in _of_model(model, of_model, pixel_max)]
    if all("FGSM" in sets.get(model, {}) for model in MODELS):
        rates = [_success(sets[model]["FGSM"]) for model in MODELS]
        statement = "FGSM succeeds less often on the PGD-trained model"
        claims.append(Claim(3, "pgd", "FGSM", statement, partial(_difference, *rates), 0.0))
    claims += [] if detectors is None else _of_detectors(detectors)
    claims += [] if adaptive is None else _of_defences(adaptive)
    rows = [_judged(claim) for claim in sorted(claims, key=lambda claim: claim.claim)]
    frame = pd.DataFrame(rows, columns=[*COLUMNS, "p"])
    family = (frame.n >= FEWEST) & frame.by_construction.isna() & frame.p.notna()
    frame["p"] = pd.Series(holm(frame.p[family]), frame.index[family], dtype=float)  # none outside the family
    sides = np.where(frame.p >= LEVEL, "undecided", np.where(frame.statistic > frame.threshold, "holds", "fails"))
    frame["verdict_holm"] = np.where(family, sides, frame.verdict)
    frame["converged"] = [_converged(sets, *row) for row in zip(frame.claim, frame.model, frame.examples, strict=True)]
    return frame[[*COLUMNS]].astype({"by_construction": object, "n_needed": "Int64", "decides": bool})


def in_words(table: pd.DataFrame) -> pd.DataFrame:
    """Return `table` with n in every verdict, such as "undecided (n=24, about 73 would decide)".

    Where the searches for more than 5 % of an attack's images had not converged, that is said too.
    """
    texts = []
    for row in table.to_dict("records"):
        said, needed = f"n={row['n']}", row["n_needed"]
        if row["verdict"] == "undecided" and not pd.isna(needed):
            said += f", about {float(f'{needed:.2g}'):.0f} would decide"
        if not pd.isna(row["by_construction"]):
            said += ", by construction"
        elif row["verdict_holm"] != row["verdict"]:
            said += ", undecided with Holm's correction"
        if row["converged"] < 1 - UNFINISHED:
            said += f", {1 - row['converged']:.0%} of the searches not converged"
        texts.append(f"{row['verdict']} ({said})")
    return table.assign(verdict=texts)


def overall(rows: pd.DataFrame) -> tuple[str, pd.Series]:
    """Return one verdict for `rows` of the table together, and the row that decides it.

    The verdict is that of most rows, of two as frequent the one that claims less, and "mixed" where some hold and
    others fail. A failing row decides, else the row of most rows' verdict whose statistic is closest to its threshold.
    """
    given = set(rows.verdict)
    most = min(map(str, rows.verdict.mode()), key=("fails", "undecided", "holds").index)
    candidates = rows[rows.verdict == ("fails" if "fails" in given else most)]
    room = (candidates.statistic - candidates.threshold).abs().fillna(math.inf).to_numpy()
    return "mixed" if {"holds", "fails"} <= given else most, candidates.iloc[int(room.argmin())]


def undecidable(s: Settings) -> list[str]:
    """Return a line for each part of the claims that a run with the settings `s` leaves open, whatever it measures.

    Images that a model misclassifies and attacks that fail leave fewer images than these lines say. A line about one of
    the two models only begins with its name.
    """
    normal, pgd = (_open(s, which) for which in MODELS)
    both = [line for line in normal if line in pgd]
    parts = zip(MODELS, (normal, pgd), strict=True)
    return both + [f"{which} model: {line}" for which, lines in parts for line in lines if line not in both]


def _open(s: Settings, which: str) -> list[str]:
    """Return the lines of `undecidable` about the model `which`."""
    given = {name: n for name, (_, n) in suite.attacks(s, which).items()}
    few: dict[int, list[str]] = {}
    for name, n in {**given, "benign images": s.region_n, "adaptive attacks": s.adaptive_n}.items():
        if n < FEWEST:
            few.setdefault(n, []).append(name)
    lines = [f"no verdict on {', '.join(names)}: {n} images, {FEWEST} are needed" for n, names in few.items()]
    if s.boundary_n < FEWEST <= max(given.values()):
        lines.append(f"no verdict of claims 6 to 8: {s.boundary_n} images are probed, {FEWEST} are needed")
    perfect = {name: partial(intervals.wilson, given[name], given[name]) for name in OPTMARGINS}
    low = [name for name, best in perfect.items() if given[name] >= FEWEST and verdict(best(), 0.95) == "undecided"]
    for name in low:
        needed = _needed(given[name], p_value(perfect[name], 0.95))
        lines.append(f"claim 1 cannot hold for {name}: {given[name]} images, {needed} are needed")
    return lines


# One row


def _judged(claim: Claim) -> dict[str, Any]:
    """Return the row of a claim as far as it does not depend on others, with its p."""
    cases = (claim.known, *claim.unknown)
    rates = [case(confidence=1 - LEVEL) for case in cases]
    rate, verdicts = rates[0], [verdict(each, claim.threshold) for each in rates]
    same = len({each.value > claim.threshold for each in rates}) == 1
    p = float(np.max([p_value(case, claim.threshold) for case in cases])) if same else 1.0
    return {
        "claim": claim.claim,
        "model": claim.model,
        "examples": claim.examples,
        "statement": claim.statement,
        "statistic": rate.value,
        "threshold": claim.threshold,
        "low": rate.low,
        "high": rate.high,
        "n": rate.n,
        "verdict": verdicts[0] if len(set(verdicts)) == 1 else "undecided",
        "by_construction": claim.by_construction or math.nan,
        "verdict_if_all_for": verdicts[1 % len(verdicts)],
        "verdict_if_all_against": verdicts[-1],
        "n_needed": _needed(rate.n, p),
        "decides": claim.decides and claim.by_construction is None,
        "p": p,
    }


def _needed(n: int, p: float) -> int | None:
    """Return about how many observations would bring `p` down to 5 %: the normal quantile of p grows as sqrt(n)."""
    if n == 0 or math.isnan(p) or p == 1:
        return None
    wanted, seen = (float(stats.norm.isf(each / 2)) for each in (LEVEL, p))
    return max(FEWEST, math.ceil(n * (wanted / seen) ** 2))


def _converged(sets: Mapping[str, Sets], claim: int, model: str, examples: str) -> float:
    """Return the least share of attacked images whose search had converged, of the attacks that a row is about."""
    names = [*examples.split(" - "), *["OPTBRITTLE"] * (claim == 2)]
    models = MODELS if claim == 3 else (model,)
    frames = [sets[which][name] for which in models for name in names if name in sets.get(which, {})]
    return min((float(frame.converged[frame.correct].mean()) for frame in frames), default=math.nan)


# What is claimed


def by_set(images: pd.DataFrame) -> dict[str, dict[str, pd.DataFrame]]:
    """Return model -> examples -> one row an image: `point` and `vote` say whether they are right."""
    sets: dict[str, dict[str, pd.DataFrame]] = {}
    for (model, examples), part in images.groupby(["model", "examples"], sort=False):
        frame = part.set_index("index")[["correct", "success", *_NUMBERS]]
        frame[_NUMBERS] = frame[_NUMBERS].astype("Float64").astype(float)
        for name in ("point", "vote"):
            frame[name] = (frame[name] == frame.y).astype(float).mask(frame[name].isna())
        frame["correct"] = frame.correct.fillna(False).astype(bool)
        frame["converged"] = part["converged"].astype("boolean").astype("Float64").astype(float).to_numpy()
        found = frame.correct if examples == BENIGN else frame.success.fillna(False).astype(bool)
        frame["success"] = found & frame.correct  # of benign images: they can be compared with an attack's successes
        sets.setdefault(str(model), {})[str(examples)] = frame
    return sets


def _of_model(model: str, sets: Sets, pixel_max: float) -> Iterator[Claim]:
    """Yield all claims about one model's images."""
    brittle = sets.get("OPTBRITTLE")
    for name in [name for name in OPTMARGINS if name in sets]:
        yield Claim(1, model, name, f"{name} succeeds on almost every image", _success(sets[name]), 0.95)
        if brittle is not None:
            change = _change(*both(sets, name, "OPTBRITTLE", "rms"), most=pixel_max)
            yield Claim(2, model, name, f"OPTBRITTLE distorts less than {name}", change, 0.0, by_construction=_SUBSET)
        for other in [other for other in _OTHERS if other in sets]:
            yield from _evasion(model, sets, name, other, pixel_max)
    if BENIGN in sets:
        yield Claim(4, model, BENIGN, "the vote keeps the accuracy on benign images", _gain(sets[BENIGN]), -0.02)
    if brittle is not None:
        gain = _gain(brittle[brittle.correct])
        yield Claim(4, model, "OPTBRITTLE", "the vote restores the accuracy on OPTBRITTLE", gain, 0.5)
    for name in [name for name in sets if name not in NOT_ATTACKS]:
        kept = sets[name].vote[sets[name].success].dropna()
        statement = f"the hypercube around {name} examples lies mostly with the true class"
        yield Claim(9, model, name, statement, partial(intervals.wilson, int(kept.sum()), len(kept)), 0.5)
        yield from _boundaries(model, sets, name)


def _evasion(model: str, sets: Sets, name: str, other: str, pixel_max: float) -> Iterator[Claim]:
    """Yield claim 5 for one variant of OPTMARGIN and one other attack."""
    pair = f"{other} - {name}"
    for counted, whose in (("success", "that both fooled"), ("correct", "attacked")):
        statement = f"the vote is right less often on {name} than on {other}, over the images {whose}"
        drop = partial(intervals.paired_difference_of_rates, *both(sets, other, name, "vote", counted=counted))
        yield Claim(5, model, pair, statement, drop, 0.0, decides=counted == "success")
    votes = sets[other].vote[sets[other].correct].dropna()
    if intervals.wilson(int(votes.sum()), len(votes)).high < 0.1:
        change = _change(*both(sets, other, name, "rms"), most=pixel_max)
        statement = f"{name} distorts less than {other}, which evades the vote as well"
        yield Claim(5, model, pair, statement, change, 0.0, decides=False)


def _boundaries(model: str, sets: Sets, name: str) -> Iterator[Claim]:
    """Yield claims 6 and 7 for one attack."""
    reason = _ON_BOUNDARY if name == "OPTBRITTLE" else None
    if BENIGN in sets:
        own, original = both(sets, name, BENIGN, "median_distance")
        known, *unknown = _share(own < original, np.isfinite(own) | np.isfinite(original))
        statement = f"the median ray is shorter around {name} than around benign images"
        yield Claim(6, model, name, statement, known, 0.5, tuple(unknown), by_construction=reason)
        change = _change(*both(sets, name, BENIGN, "share_below_region_line"))
        statement = f"more rays end within the vote's expected distance around {name} than around benign images"
        yield Claim(6, model, name, statement, change, 0.0, by_construction=reason)
        purities = both(sets, name, BENIGN, "purity_1")
        reached = (purities[0] > 0) & (purities[1] > 0)
        statement = f"the boundary around {name} is purer than around benign images"
        yield Claim(7, model, name, statement, _change(*(each[reached] for each in purities)), 0.0)
    purity = sets[name].purity_1[sets[name].success].dropna().to_numpy()
    known, *unknown = _share(purity > 0.5, purity > 0)
    statement = f"most rays around {name} lead to one class"
    yield Claim(7, model, name, statement, known, 0.5, tuple(unknown), by_construction=reason)


def _of_detectors(detectors: pd.DataFrame) -> Iterator[Claim]:
    """Yield claim 8 from the rows of detector.csv."""
    for row in detectors[np.isclose(detectors.target_fpr, _RATE)].to_dict("records"):
        model, kind, trained, tested = (row[name] for name in ("model", "detector", "trained_on", "tested_on"))
        if trained == tested:
            who = "boundary information" if kind == "network" else f"the baseline {kind}"
            statement = f"{who} separates benign images from {tested}"
            yield Claim(8, model, tested, statement, _area(row), 0.9, decides=kind == "network")
        elif kind == "network" and trained == "all" and tested in (*CONTROLS, "matched"):
            passed = _spared(row["false_positive_rate"], int(row["n_benign"]))
            statement = f"the detector lets most images of the control {tested} pass"
            yield Claim(8, model, tested, statement, passed, 0.5, decides=False)
            if tested == "matched":
                statement = "boundary information separates benign images from adversarial ones of like median distance"
                yield Claim(8, model, tested, statement, _area(row), 0.9, decides=False)


def _of_defences(adaptive: pd.DataFrame) -> Iterator[Claim]:
    """Yield claims 10 and 11 from the rows of adaptive.csv."""
    best = adaptive[(adaptive.attack == "minimum") & adaptive.budget_rms.notna()]
    for claim, defence in _ATTACKED.items():
        asked = best[(best.defence == defence) & (best.fpr.isna() | np.isclose(best.fpr, _RATE))]
        for row in asked.to_dict("records"):
            stood = _spared(row["success_rate"], int(row["n"]))
            statement = f"the {defence} withstands every attack on most images within an RMS of {row['budget_rms']:.3g}"
            yield Claim(claim, row["model"], "minimum", statement, stood, 0.5)


def both(sets: Sets, a: str, b: str, column: str, *, counted: str = "success") -> list[NDArray[Any]]:
    """Return a column of the sets `a` and `b` on the images that are counted, and were measured, in both sets."""
    values = [sets[name].loc[sets[name][counted], column].dropna() for name in (a, b)]
    common = values[0].index.intersection(values[1].index)
    return [each[common].to_numpy() for each in values]


def _change(a: NDArray[Any], b: NDArray[Any], *, most: float = 1.0) -> Interval:
    """Return the mean of `a - b`, which is at most `most` either way."""
    return partial(intervals.mean, a - b, bounds=(-most, most))


def _share(answers: NDArray[Any], known: NDArray[Any]) -> tuple[Interval, Interval, Interval]:
    """Return the share of the `known` answers that are true; with all others true; with all others false."""
    true, n = int((answers & known).sum()), len(answers)
    unknown = n - int(known.sum())
    counts = (true, n - unknown), (true + unknown, n), (true, n)
    return tuple(partial(intervals.wilson, *each) for each in counts)  # type: ignore[return-value]


def _success(images: pd.DataFrame) -> Interval:
    return partial(intervals.wilson, int(images.success.sum()), int(images.correct.sum()))


def _spared(rate: float, n: int) -> Interval:
    """Return the share of `n` images that are not among the share `rate`; of none where that was not measured."""
    return partial(intervals.wilson, *((0, 0) if math.isnan(rate) else (round((1 - rate) * n), n)))


def _difference(a: Interval, b: Interval, *, confidence: float) -> Rate:
    return intervals.difference_of_rates(a(confidence=confidence), b(confidence=confidence))


def _gain(images: pd.DataFrame) -> Interval:
    """Return region accuracy minus point accuracy."""
    images = images.dropna(subset=["point", "vote"])
    return partial(intervals.paired_difference_of_rates, images.vote, images.point)


def _area(row: Mapping[Any, Any]) -> Interval:
    """Return the area under the ROC curve in a row of detector.csv; see `table` for its interval."""
    sizes = [int(row[f"n_{name}"]) for name in ("benign", "adversarial")]
    value, low, high = (row[name] for name in ("auc", "auc_low", "auc_high"))
    usual = intervals.area(value, *sizes)
    below = (value - low) / (value - usual.low) if value > usual.low else 1.0
    above = (high - value) / (usual.high - value) if usual.high > value else 1.0

    def interval(*, confidence: float) -> Rate:
        rate = intervals.area(value, *sizes, confidence=confidence)
        ends = value - below * (value - rate.low), value + above * (rate.high - value)
        return Rate(value, *ends, min(sizes))

    return interval
