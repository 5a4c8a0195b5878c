"""Which attack came nearest to each image: the best of all as the trusted bound of the distance to the boundary."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import fields

import pandas as pd
from torch import Tensor

from nbsupport.attacks import Attack, best_of
from nbsupport.stages.attacks import Examples
from nbsupport.stages.inputs import by_model, evaluation_data
from nbsupport.store import Run


def nearest_table(run: Run, found: Mapping[tuple[str, str], Examples]) -> pd.DataFrame:
    """Return nearest.csv: every attack against the least distortion that any attack needed, one row each.

    The rows are about the first images, which every attack was given, of these about the n that were attacked.
    `nearest_share`: the part of the images on which this attack was the nearest. `mean_rms` is over its own successes,
    `mean_excess` is that mean over the mean of the least RMS on the same images, less one; of the rows "best of all"
    `mean_rms` is the mean of that least RMS. Lengths are in the data set's own units.
    """
    pixel_max = evaluation_data(run, limit=1).pixel_max
    rows = []
    for model, sets in by_model(found).items():
        common = min(len(examples.index) for examples in sets.values())
        results = {name: _first(examples.result, common) for name, examples in sets.items()}
        best = best_of(list(results.values()))
        for name, result in {**results, "best of all": best}.items():
            own = result.success
            rows.append(
                {
                    "model": model,
                    "attack": name,
                    "n": int(best.correct.sum()),
                    "success_rate": _mean(own[best.correct]),
                    "nearest_share": _mean((own & (result.rms == best.rms))[best.correct]),
                    "mean_rms": _mean(result.rms[own]) * pixel_max,
                    "mean_excess": _mean(result.rms[own]) / _mean(best.rms[own]) - 1 if own.any() else math.nan,
                }
            )
    return pd.DataFrame(rows)


def _first(result: Attack, count: int) -> Attack:
    return Attack(**{field.name: getattr(result, field.name)[:count] for field in fields(Attack)})


def _mean(values: Tensor) -> float:
    return float(values.double().mean()) if len(values) else math.nan
