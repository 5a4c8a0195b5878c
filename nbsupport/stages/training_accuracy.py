"""How accurate both trained models are on test images, benign and under PGD."""

from __future__ import annotations

from typing import Any

import pandas as pd
import torch
from torch import nn

from nbsupport import attacks, runtime
from nbsupport.data import ImageSet
from nbsupport.intervals import wilson
from nbsupport.stages.inputs import MODELS, evaluation_data, images_per_shard, load_model
from nbsupport.store import Run

STAGE = "02_training"
_MOST, _TIMES = 500, 10  # images; ten times those that the run attacks


def accuracy_table(run: Run) -> pd.DataFrame:
    """Return training.csv: the accuracy of both models on the first test images, with Wilson's 95 % intervals.

    As many images as ten times the run's `n`, at most 500. `pgd_accuracy` is the share that is classified correctly
    before and after PGD of `steps` steps within `eps` (in the data set's own units); `schedule` says how the model
    was trained.
    """
    test = evaluation_data(run, limit=min(_MOST, _TIMES * run.settings.n))
    return pd.DataFrame([_row(run, name, load_model(run, name), test) for name in MODELS])


def _row(run: Run, name: str, model: nn.Module, test: ImageSet) -> dict[str, Any]:
    s = run.settings
    benign, robust = 0, 0
    shard = images_per_shard(run, model, test.in_shape, stage=STAGE, share=8)
    for start in range(0, len(test), shard):
        result = attacks.pgd_linf(
            model,
            test.x[start : start + shard],
            test.y[start : start + shard],
            eps=s.eps,
            steps=s.pgd_steps,
            step_size=s.pgd_step_size,
            restarts=s.pgd_restarts,
            generator=runtime.seeded(s.seed, "accuracy"),  # the same random start for every shard
        )
        benign += int(result.correct.sum())
        robust += int(torch.count_nonzero(result.correct & ~result.success))
        run.report(STAGE, f"PGD accuracy of {name}", min(start + shard, len(test)), len(test))
    row: dict[str, Any] = {"model": name, "n": len(test)}
    for column, count in (("benign_accuracy", benign), ("pgd_accuracy", robust)):
        rate = wilson(count, len(test))
        row |= {column: rate.value, f"{column}_low": rate.low, f"{column}_high": rate.high}
    schedule = "normal" if name == "normal" else s.pgd_schedule
    return row | {"eps": test.pixel_max * s.eps, "steps": s.pgd_steps, "schedule": schedule}
