"""The claims of the talk, each with a verdict from our own measurements."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import pandas as pd

from nbsupport import intervals
from nbsupport.intervals import Rate
from nbsupport.suite import OPTMARGINS

COLUMNS = ("claim", "model", "examples", "statement", "statistic", "threshold", "low", "high", "n", "verdict")
NOT_ATTACKS = ("benign", "noise", "errors")
FEWEST = 30  # observations for a verdict
_NUMBERS = ["y", "rms", "point", "vote", "median_distance", "purity_1"]  # what the claims need of an image


def verdict(statistic: Rate, threshold: float) -> str:
    """Return what is to be said of the claim that `statistic` lies above `threshold`.

    "holds" where the whole interval lies above, "fails" where it lies below, "undecided" otherwise, where fewer
    than 30 observations were made, and where a number is missing.
    """
    missing = any(math.isnan(value) for value in (statistic.value, statistic.low, statistic.high))
    if statistic.n < FEWEST or missing:
        return "undecided"
    if statistic.low > threshold:
        return "holds"
    return "fails" if statistic.high < threshold else "undecided"


def table(images: pd.DataFrame, detectors: pd.DataFrame | None = None, *, pixel_max: float) -> pd.DataFrame:
    """Return one row a (claim, model, examples), columns `COLUMNS`, for all sets of examples in `images`.

    Every claim says that a statistic lies above a threshold; `low` and `high` are its 95 % interval, `n` the number
    of images (or pairs) in it. Rates have Wilson's interval, differences of rates Newcombe's (paired where both
    are of the same images), means of paired differences Student's, areas under the ROC curve Newcombe's.

    - Claims 4 and 5, as the region table: all benign images, and all attacked images with whatever the attack
      returned. The rows of claim 5 are named after both sets.
    - Claims 2, 6, 7 and 9, on adversarial examples: images on which the attack (claim 2: both attacks) succeeded.
    - Claim 3 compares the two models, as independent samples, and is filed under `pgd`.
    - Claim 6: a median that is infinite for both versions is not nearer. Claim 7: no ray reached is purity 0.
    - Claim 8: detectors tested on the attack that they were trained on; `n` is the smaller class.

    Parameters
    ----------
    images
        One row an image, as `tables.images` returns them.
    detectors
        Rows of detector.csv; None: claim 8 has no rows.
    pixel_max
        The data set's own unit, in which `rms` and with it the statistic of claim 2 are stated.
    """
    sets: dict[str, dict[str, pd.DataFrame]] = {}
    for (model, examples), part in images.groupby(["model", "examples"], sort=False):
        frame = part.set_index("index")[["correct", "success", *_NUMBERS]]
        frame[_NUMBERS] = frame[_NUMBERS].astype("Float64").astype(float)
        frame["correct"] = frame.correct.fillna(False).astype(bool)
        frame["success"] = frame.success.fillna(False).astype(bool) & frame.correct
        sets.setdefault(str(model), {})[str(examples)] = frame
    rows: list[dict[str, Any]] = []
    for name, of_model in sets.items():
        rows += _of_model(name, of_model, pixel_max)
    rows += _hardening(sets)
    rows += _detection(detectors)
    rows.sort(key=lambda row: int(row["claim"]))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _of_model(model: str, sets: dict[str, pd.DataFrame], pixel_max: float) -> Iterator[dict[str, Any]]:
    """Yield the rows of all claims about one model."""
    attacks = [name for name in sets if name not in NOT_ATTACKS]
    margins = [name for name in OPTMARGINS if name in sets]
    for name in margins:
        attacked = sets[name][sets[name].correct]
        rate = intervals.wilson(int(attacked.success.sum()), len(attacked))
        yield _row(1, model, name, f"{name} succeeds on almost every image", rate, 0.95)
        if "OPTBRITTLE" in sets:
            both = _both(sets, name, "OPTBRITTLE")
            both = both[both.success_a & both.success_b]
            change = intervals.mean(both.rms_a - both.rms_b, bounds=(-pixel_max, pixel_max))
            yield _row(2, model, name, f"OPTBRITTLE distorts less than {name}", change, 0.0)
        for other in ("FGSM", "PGD", "OPTBRITTLE"):
            if other in sets:
                both = _both(sets, other, name, needed=["vote"])
                both = both[both.correct_a & both.correct_b]
                drop = intervals.paired_difference_of_rates(both.vote_a == both.y_a, both.vote_b == both.y_b)
                statement = f"the region vote is right less often on {name} than on {other}"
                yield _row(5, model, f"{other} - {name}", statement, drop, 0.0)
    if "benign" in sets:
        statement = "the region vote keeps the accuracy on benign images"
        yield _row(4, model, "benign", statement, _gain(sets["benign"]), -0.02)
    if "OPTBRITTLE" in sets:
        statement = "the region vote restores the accuracy on OPTBRITTLE"
        yield _row(4, model, "OPTBRITTLE", statement, _gain(sets["OPTBRITTLE"][sets["OPTBRITTLE"].correct]), 0.5)
        fooled = sets["OPTBRITTLE"][sets["OPTBRITTLE"].success].dropna(subset="vote")
        rate = intervals.wilson(int((fooled.vote == fooled.y).sum()), len(fooled))
        statement = "the hypercube around an OPTBRITTLE example lies mostly with the true class"
        yield _row(9, model, "OPTBRITTLE", statement, rate, 0.5)
    for name in attacks if "benign" in sets else []:
        pairs = _both(sets, name, "benign", needed=["median_distance"])
        pairs = pairs[pairs.success_a & pairs.correct_b]
        rate = intervals.wilson(int((pairs.median_distance_a < pairs.median_distance_b).sum()), len(pairs))
        yield _row(6, model, name, f"boundaries are nearer around {name} than around benign images", rate, 0.5)
        pairs = _both(sets, name, "benign", needed=["purity_1"])
        pairs = pairs[pairs.success_a & pairs.correct_b]
        change = intervals.mean(pairs.purity_1_a - pairs.purity_1_b, bounds=(-1.0, 1.0))
        yield _row(7, model, name, f"the boundary around {name} is purer than around benign images", change, 0.0)


def _hardening(sets: dict[str, dict[str, pd.DataFrame]]) -> Iterator[dict[str, Any]]:
    """Yield the row of claim 3, where FGSM was measured on both models."""
    rates = []
    for model in ("normal", "pgd"):
        if "FGSM" not in sets.get(model, {}):
            return
        attacked = sets[model]["FGSM"][sets[model]["FGSM"].correct]
        rates.append(intervals.wilson(int(attacked.success.sum()), len(attacked)))
    statement = "FGSM succeeds less often on the PGD-trained model"
    yield _row(3, "pgd", "FGSM", statement, intervals.difference_of_rates(*rates), 0.0)


def _detection(detectors: pd.DataFrame | None) -> Iterator[dict[str, Any]]:
    """Yield the rows of claim 8."""
    for row in [] if detectors is None else detectors.to_dict("records"):
        if (name := row["tested_on"]) == row["trained_on"]:
            area = Rate(row["auc"], row["auc_low"], row["auc_high"], min(row["n_benign"], row["n_adversarial"]))
            yield _row(8, row["model"], name, f"boundary information separates benign images from {name}", area, 0.9)


def _both(sets: dict[str, pd.DataFrame], a: str, b: str, *, needed: Sequence[str] = ()) -> pd.DataFrame:
    """Return the images of both sets, columns suffixed _a and _b, without those where `needed` was not measured."""
    joined = sets[a].add_suffix("_a").join(sets[b].add_suffix("_b"), how="inner")
    return joined.dropna(subset=[name + end for name in needed for end in ("_a", "_b")])


def _gain(images: pd.DataFrame) -> Rate:
    """Return region accuracy minus point accuracy."""
    images = images.dropna(subset=["point", "vote"])
    return intervals.paired_difference_of_rates(images.vote == images.y, images.point == images.y)


def _row(claim: int, model: str, examples: str, statement: str, statistic: Rate, threshold: float) -> dict[str, Any]:
    values = (claim, model, examples, statement, statistic.value, threshold, statistic.low, statistic.high, statistic.n)
    return dict(zip(COLUMNS, (*values, verdict(statistic, threshold)), strict=True))
