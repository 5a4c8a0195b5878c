"""What it costs to evade region classification: OPTMARGIN's distortion as the demand on its views grows."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pandas as pd
from torch import Tensor, nn

from nbsupport import attacks, region, runtime
from nbsupport.data import ImageSet
from nbsupport.intervals import wilson
from nbsupport.presets import Settings
from nbsupport.stages.attacks import STAGE, Examples, recipes
from nbsupport.stages.inputs import evaluation_data, images_per_shard, load_model
from nbsupport.store import Run

_MODEL = "normal"
_PUBLISHED = ("OPTMARGIN", "OPTMARGIN-adam", "OPTMARGIN-authors")


@dataclass(frozen=True)
class Demand:
    """One setting of OPTMARGIN: `views` of RMS `size` ([0, 1] units) must be across by `confidence` (logits)."""

    views: int
    size: float
    confidence: float


def curves(s: Settings, in_shape: tuple[int, ...]) -> dict[str, list[Demand]]:
    """Return three curves through the published demand, in each of which one part of it grows."""
    most = math.prod(in_shape) + 1
    views = sorted({min(count, most) for count in (1, s.views // 4 or 1, s.views, 2 * s.views)})
    sizes = [share * s.view_eps for share in (0.5, 1.0, 1.5, 2.0)]
    confidences = [share * s.confidence for share in (0.0, 0.05, 0.15, 0.4)]  # shares of OPTSTRONG's
    return {
        "number of views": [Demand(count, s.view_eps, 0.0) for count in views],
        "size of the views": [Demand(s.views, size, 0.0) for size in sizes],
        "confidence": [Demand(s.views, s.view_eps, confidence) for confidence in confidences],
    }


def evasion_table(run: Run, found: Mapping[tuple[str, str], Examples]) -> pd.DataFrame:
    """Return evasion.csv: distortion and region accuracy on the normal model, one row a demand, lengths in data units.

    Of the first `cost_n` test images those count that were attacked, that is classified correctly. `curve` names what
    grows, and `demand` its value; the rows of the curve "published" are OPTMARGIN's three versions in `found`, which
    is what `attack_models` returns.
    `mean_rms` is over the successes; `region_accuracy` is the share of all n whose true label wins the vote, with its
    Wilson 95 % interval.
    """
    s, model = run.settings, load_model(run, _MODEL)
    test = evaluation_data(run, limit=min(s.cost_n, s.n))
    rows = []
    for curve, demands in curves(s, test.in_shape).items():
        for demand in demands:
            changed = {"number of views": demand.views, "confidence": demand.confidence}
            value = changed.get(curve, demand.size * test.pixel_max)
            rows.append({"curve": curve, "demand": value, **_row(_measured(run, model, test, demand), test.pixel_max)})
    for name in _PUBLISHED:
        examples, recipe = found[_MODEL, name], recipes(s)[name]
        n = min(len(test), len(examples.index))
        entries = {"x": examples.result.x_adv[:n], "y": examples.y[:n]}
        for field in ("correct", "success", "rms"):
            entries[field] = getattr(examples.result, field)[:n]
        entries["kept"] = _kept(s, model, entries["x"], entries["y"])
        label = f"{name} ({recipe.solver}, {recipe.variant})"
        rows.append({"curve": "published", "demand": label, **_row(entries, test.pixel_max)})
    return pd.DataFrame(rows)


def _measured(run: Run, model: nn.Module, test: ImageSet, demand: Demand) -> Mapping[str, Tensor]:
    name = f"views-{demand.views}_size-{demand.size:.4f}_confidence-{demand.confidence:.4f}"
    return run.sharded(
        f"evasion/{_MODEL}/{name}.safetensors",
        len(test),
        images_per_shard(run, model, test.in_shape, stage=STAGE, share=8),
        partial(_attack, run.settings, model, test, demand),
        stage=STAGE,
        what=f"{demand.views} views of RMS {demand.size:.3g}, confidence {demand.confidence:.3g}",
    )


def _attack(s: Settings, model: nn.Module, test: ImageSet, demand: Demand, start: int, stop: int) -> dict[str, Tensor]:
    x, y = test.x[start:stop], test.y[start:stop]
    result = attacks.optmargin(
        model,
        x,
        y,
        eps=demand.size,
        views=demand.views,
        confidence=demand.confidence,
        solver="ddn",
        steps=s.ddn_steps,
        generator=runtime.seeded(s.seed, "attack", "OPTMARGIN"),
    )
    kept = _kept(s, model, result.x_adv, y)
    return {"y": y, "correct": result.correct, "success": result.success, "rms": result.rms, "kept": kept}


def _kept(s: Settings, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    """Return for which images (N,) bool the true label `y` wins the vote of the notebook 04."""
    generator = runtime.seeded(s.seed, "region")
    label = region.classify(model, x, radius=s.radius, samples=s.samples, generator=generator).label
    return label.cpu() == y


def _row(entries: Mapping[str, Tensor], pixel_max: float) -> dict[str, float]:
    correct, success = entries["correct"], entries["success"]
    n = int(correct.sum())
    kept = wilson(int((entries["kept"] & correct).sum()), n)
    return {
        "n": n,
        "success_rate": float(success.sum()) / n if n else math.nan,
        "mean_rms": float(entries["rms"][success].double().mean()) * pixel_max,
        "region_accuracy": kept.value,
        "region_low": kept.low,
        "region_high": kept.high,
    }
