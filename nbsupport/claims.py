"""The claims of the talk, each with a verdict from our own measurements."""

import math
from collections.abc import Iterator, Mapping
from operator import itemgetter
from typing import Any

import pandas as pd
from numpy.typing import NDArray

from nbsupport import intervals
from nbsupport.intervals import Rate
from nbsupport.presets import MODELS
from nbsupport.suite import BENIGN, OPTMARGINS

Sets = Mapping[str, pd.DataFrame]  # of one model, by examples
Claim = tuple[int, str, str, str, Rate, float]  # number, model, examples, statement, statistic, threshold

COLUMNS = ("claim", "model", "examples", "statement", "statistic", "threshold", "low", "high", "n", "verdict")
NOT_ATTACKS = (BENIGN, "noise", "errors")
FEWEST = 30  # observations for a verdict
_NUMBERS = ["y", "rms", "point", "vote", "median_distance", "purity_1"]  # what the claims need of an image


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
        for name in ("point", "vote"):  # from here on: is it right?
            frame[name] = (frame[name] == frame.y).astype(float).mask(frame[name].isna())
        frame["correct"] = frame.correct.fillna(False).astype(bool)
        found = frame.correct if examples == BENIGN else frame.success.fillna(False).astype(bool)
        frame["success"] = found & frame.correct  # of benign images: they can be compared with an attack's successes
        sets.setdefault(str(model), {})[str(examples)] = frame
    claims = [claim for model, of_model in sets.items() for claim in _of_model(model, of_model, pixel_max)]
    if all("FGSM" in sets.get(model, {}) for model in MODELS):
        change = intervals.difference_of_rates(*(_success(sets[model]["FGSM"]) for model in MODELS))
        claims.append((3, "pgd", "FGSM", "FGSM succeeds less often on the PGD-trained model", change, 0.0))
    for row in [] if detectors is None else detectors.to_dict("records"):
        if (name := row["tested_on"]) == row["trained_on"]:
            area = Rate(row["auc"], row["auc_low"], row["auc_high"], min(row["n_benign"], row["n_adversarial"]))
            statement = f"boundary information separates benign images from {name}"
            claims.append((8, row["model"], name, statement, area, 0.9))
    rows = [
        (*claim, rate.value, threshold, rate.low, rate.high, rate.n, verdict(rate, threshold))
        for *claim, rate, threshold in sorted(claims, key=itemgetter(0))
    ]
    return pd.DataFrame(rows, columns=[*COLUMNS])


def _of_model(model: str, sets: Sets, pixel_max: float) -> Iterator[Claim]:
    """Yield all claims about one model."""
    brittle = sets.get("OPTBRITTLE")
    for name in [name for name in OPTMARGINS if name in sets]:
        yield 1, model, name, f"{name} succeeds on almost every image", _success(sets[name]), 0.95
        if brittle is not None:
            own, least = _both(sets, name, "OPTBRITTLE", "rms")
            change = intervals.mean(own - least, bounds=(-pixel_max, pixel_max))
            yield 2, model, name, f"OPTBRITTLE distorts less than {name}", change, 0.0
        for other in [other for other in ("FGSM", "PGD", "OPTBRITTLE") if other in sets]:
            drop = intervals.paired_difference_of_rates(*_both(sets, other, name, "vote", counted="correct"))
            statement = f"the region vote is right less often on {name} than on {other}"
            yield 5, model, f"{other} - {name}", statement, drop, 0.0
    if BENIGN in sets:
        yield 4, model, BENIGN, "the region vote keeps the accuracy on benign images", _gain(sets[BENIGN]), -0.02
    if brittle is not None:
        gain, kept = _gain(brittle[brittle.correct]), brittle.vote[brittle.success].dropna()
        yield 4, model, "OPTBRITTLE", "the region vote restores the accuracy on OPTBRITTLE", gain, 0.5
        statement = "the hypercube around an OPTBRITTLE example lies mostly with the true class"
        yield 9, model, "OPTBRITTLE", statement, intervals.wilson(int(kept.sum()), len(kept)), 0.5
    for name in [name for name in sets if name not in NOT_ATTACKS and BENIGN in sets]:
        own, original = _both(sets, name, BENIGN, "median_distance")
        rate = intervals.wilson(int((own < original).sum()), len(own))
        yield 6, model, name, f"boundaries are nearer around {name} than around benign images", rate, 0.5
        own, original = _both(sets, name, BENIGN, "purity_1")
        change = intervals.mean(own - original, bounds=(-1.0, 1.0))
        yield 7, model, name, f"the boundary around {name} is purer than around benign images", change, 0.0


def _both(sets: Sets, a: str, b: str, column: str, *, counted: str = "success") -> list[NDArray[Any]]:
    """Return a column of the sets `a` and `b` on the images that are counted, and were measured, in both sets."""
    values = [sets[name].loc[sets[name][counted], column].dropna() for name in (a, b)]
    common = values[0].index.intersection(values[1].index)
    return [each[common].to_numpy() for each in values]


def _success(images: pd.DataFrame) -> Rate:
    return intervals.wilson(int(images.success.sum()), int(images.correct.sum()))


def _gain(images: pd.DataFrame) -> Rate:
    """Return region accuracy minus point accuracy."""
    images = images.dropna(subset=["point", "vote"])
    return intervals.paired_difference_of_rates(images.vote, images.point)
