"""The vote of notebook 04 varied: regions of other shapes that reach equally far, means instead of the plurality."""

from __future__ import annotations

from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from nbsupport import region, runtime
from nbsupport.intervals import wilson
from nbsupport.presets import Settings
from nbsupport.stages.attacks import load_examples
from nbsupport.stages.inputs import evaluation_data, images_per_shard, load_model
from nbsupport.stages.region import STAGE
from nbsupport.store import Run

_MODEL = "normal"
_IMAGES = 100  # at most
_EXAMPLES = ("benign", "OPTBRITTLE", "OPTMARGIN")
# The published vote first; all others differ from it in one thing.
_VARIANTS = [(shape, region.COMBINATIONS[0]) for shape in region.SHAPES]
_VARIANTS += [(region.SHAPES[0], combine) for combine in region.COMBINATIONS[1:]]


def other_regions_table(run: Run) -> pd.DataFrame:
    """Return region_other.csv: accuracies on the normal model, one row a shape and a combination of the points.

    All columns are about the same `n` images, those of the first 100 (or `settings.n`) that were attacked, that is
    classified correctly: the share whose true label comes out, of the benign image and of each attack's, with
    Wilson's 95 % interval. `radius`, in the data set's own unit, differs between shapes such that the expected RMS
    of an offset, before clipping, is that of the run's hypercube.
    """
    s, model = run.settings, load_model(run, _MODEL)
    test = evaluation_data(run, limit=min(s.n, _IMAGES))
    found = load_examples(run)
    attacked = [found[_MODEL, name] for name in _EXAMPLES[1:]]
    versions = torch.stack((test.x, *(examples.result.x_adv[: len(test)] for examples in attacked)), 1)
    stored = run.sharded(
        f"region_other/{_MODEL}.safetensors",
        len(test),
        images_per_shard(run, model, test.in_shape, stage=STAGE, share=2),
        partial(_labels, s, model, versions),
        stage=STAGE,
        what=f"other regions and votes, {_MODEL}",
    )
    correct = torch.stack([examples.result.correct[: len(test)] for examples in attacked]).all(0)
    right = stored["label"][correct] == test.y[correct, None, None]  # (n, variants, examples)
    n, dim = len(right), test.x[0].numel()
    rows = []
    for i, (shape, combine) in enumerate(_VARIANTS):
        row = {"shape": shape, "combine": combine, "radius": _radius(s, shape, dim) * test.pixel_max, "n": n}
        for j, examples in enumerate(_EXAMPLES):
            rate, name = wilson(int(right[:, i, j].sum()), n), f"{examples}_accuracy"
            row |= {name: rate.value, f"{name}_low": rate.low, f"{name}_high": rate.high}
        rows.append(row)
    return pd.DataFrame(rows)


def _labels(s: Settings, model: nn.Module, versions: Tensor, start: int, stop: int) -> dict[str, Tensor]:
    """Return the labels (R, variants, examples) of the rows of `versions` (N, examples, C, H, W) in [start, stop)."""
    x = versions[start:stop].flatten(0, 1)
    labels = []
    for shape, combine in _VARIANTS:
        vote = region.classify(
            model,
            x,
            radius=_radius(s, shape, x[0].numel()),
            samples=s.samples,
            generator=runtime.seeded(s.seed, "region"),  # the points of region.csv
            shape=shape,
            combine=combine,
        )
        labels.append(vote.label.view(stop - start, -1))
    return {"label": torch.stack(labels, 1)}


def _radius(s: Settings, shape: str, dim: int) -> float:
    return s.radius * (region.unit_rms(region.SHAPES[0], dim) / region.unit_rms(shape, dim))
