"""Which of the stored successes survive being scored again."""

from __future__ import annotations

from collections.abc import Mapping

import pandas as pd

from nbsupport import attacks, tables
from nbsupport.stages.attacks import Examples
from nbsupport.stages.inputs import load_model
from nbsupport.store import Run


def stability_table(run: Run, found: Mapping[tuple[str, str], Examples]) -> pd.DataFrame:
    """Return stability.csv: the shares of every attack's successes that are undone by scoring them again.

    Alone, in a batch of 256, in float64 and after rounding to 8-bit pixels: see `attacks.stability`.
    """
    models = {model: load_model(run, model) for model, _ in found}
    rows = []
    for (model, name), examples in found.items():
        success = examples.result.success
        flips = attacks.stability(models[model], examples.result.x_adv[success], examples.y[success])
        rows.append(tables.StabilityRow(model, name, flips))
    return tables.stability(rows)
