"""Which of a run's results a figure shows: by model, the first images side by side, the rays of one image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

import pandas as pd
import torch
from torch import Tensor

from nbsupport import region, runtime, tables
from nbsupport.boundary import Profile
from nbsupport.intervals import Rate, wilson
from nbsupport.stages.attacks import Examples, load_examples
from nbsupport.stages.inputs import MODELS, evaluation_data, load_model
from nbsupport.store import Run

T = TypeVar("T")


def by_model(found: Mapping[tuple[str, str], T]) -> dict[str, dict[str, T]]:
    """Return what is filed under (model, examples) as model -> examples, both models always among the keys."""
    return {model: {name: entry for (of, name), entry in found.items() if of == model} for model in MODELS}


def kept_epochs(history: pd.DataFrame) -> dict[str, int]:
    """Return the epoch of each model in `history` whose weights `train.fit` kept.

    It is the last of those with the best validation accuracy, under PGD for the PGD-trained model.
    """
    scores = {"normal": "benign_accuracy", "pgd": "pgd_accuracy"}
    parts = {model: history[history["model"] == model] for model in scores}
    best = {model: part[part[scores[model]] == part[scores[model]].max()] for model, part in parts.items()}
    return {model: int(part["epoch"].max()) for model, part in best.items() if len(part)}


@dataclass(frozen=True, eq=False)
class Gallery:
    """Images of one model beside what attacks made of them, with the model's label of each.

    `x` (N, C, H, W), `y` and `before` (N,) are the originals, their true and predicted labels; `adversarial` and
    `after` hold, for each attack, images (N, C, H, W) and labels (N,).
    """

    model: str
    x: Tensor
    y: Tensor
    before: Tensor
    adversarial: dict[str, Tensor]
    after: dict[str, Tensor]


def gallery(
    run: Run,
    found: Mapping[tuple[str, str], Examples],
    model: str,
    *,
    names: Sequence[str] | None = None,
    count: int | None = None,
    succeeded: bool = False,
) -> Gallery:
    """Return the first images that all of the attacks `names` (None: every attack) were given.

    Parameters
    ----------
    count : int, optional
        At most so many; None: all.
    succeeded : bool
        Only images on which all of the attacks succeeded.

    Images that the model misclassified are left out. Where no image fulfils the conditions they are dropped, last
    one first, so that there is always an image to show.
    """
    of_model = by_model(found)[model]
    chosen = {name: of_model[name] for name in names or of_model}
    shortest = min(chosen.values(), key=lambda examples: len(examples.index))
    common = len(shortest.index)  # every attack is given the first images of the test set
    correct = shortest.result.correct
    successes = torch.stack([examples.result.success[:common] for examples in chosen.values()]).all(0)
    conditions = [correct & successes] * succeeded + [correct, torch.ones_like(correct)]
    rows = next(mask for mask in conditions if bool(mask.any())).nonzero().squeeze(1)[:count]
    network = load_model(run, model)
    x = shortest.x[rows]
    adversarial = {name: examples.result.x_adv[rows] for name, examples in chosen.items()}
    after = {name: runtime.predict(network, x_adv).cpu() for name, x_adv in adversarial.items()}
    return Gallery(model, x, shortest.y[rows], runtime.predict(network, x).cpu(), adversarial, after)


def region_accuracy(run: Run, shown: Gallery) -> dict[str, Rate]:
    """Return the share of the gallery's images whose true label wins the region vote, for each attack."""
    s, model = run.settings, load_model(run, shown.model)
    rates = {}
    for name, x_adv in shown.adversarial.items():
        generator = runtime.seeded(s.seed, "region")  # the offsets of the notebook 04
        label = region.classify(model, x_adv, radius=s.radius, samples=s.samples, generator=generator).label.cpu()
        rates[name] = wilson(int((label == shown.y).sum()), len(label))
    return rates


@dataclass(frozen=True, eq=False)
class Instances:
    """The rays of one image in several versions: `profiles` and `clipped_rms`, both by the name of the version.

    `clipped_rms` is the mean RMS, [0, 1] units, of the clipped samples of region classification around the version.
    """

    profiles: dict[str, Profile]
    clipped_rms: dict[str, float]


def instances(
    run: Run,
    profiles: Mapping[tuple[str, str], tuple[Tensor, Profile]],
    model: str,
    *,
    names: Sequence[str] = ("benign", "OPTBRITTLE", "OPTMARGIN"),
) -> Instances:
    """Return an image that was probed in all the versions `names`; versions that no image has are left out.

    It is a typical one: the middle one in the order of the median ray of the first version. Where no image was probed
    in all of them, the last versions are dropped until one was; without any image both mappings are empty.
    """
    probed = {name: profiles[model, name] for name in names if (model, name) in profiles}
    common = _common(probed)
    while probed and not common:
        probed.popitem()
        common = _common(probed)
    found, spread = {}, {}
    position = _typical(*next(iter(probed.values())), common) if probed else 0
    for name, (index, profile) in probed.items():
        found[name] = profile.take(index == position)
        spread[name] = _clipped_rms(run, _image(run, model, name, position))
    return Instances(found, spread)


def _common(probed: Mapping[str, tuple[Tensor, Profile]]) -> list[int]:
    """Return the positions in the test set that all sets of examples share, ascending."""
    positions = [set(index.tolist()) for index, _ in probed.values()]
    return sorted(set.intersection(*positions)) if positions else []


def _typical(index: Tensor, profile: Profile, common: Sequence[int]) -> int:
    """Return the position in `common` whose median ray is the middle one."""
    medians = dict(zip(index.tolist(), tables.ray_medians(profile), strict=True))
    return sorted(common, key=medians.__getitem__)[(len(common) - 1) // 2]


def _image(run: Run, model: str, name: str, position: int) -> Tensor:
    """Return the version `name` of the test image at `position`, (C, H, W)."""
    if name == "benign":
        return evaluation_data(run, limit=position + 1).x[position]
    examples = load_examples(run)[model, name]
    return examples.result.x_adv[examples.index == position][0]


def _clipped_rms(run: Run, x: Tensor) -> float:
    s = run.settings
    generator = runtime.seeded(s.seed, "clipped")
    offsets = s.radius * (2 * torch.rand(max(s.samples, 1000), *x.shape, generator=generator) - 1)
    moved = (x + offsets).clamp(0, 1) - x
    return float(moved.square().flatten(1).mean(1).sqrt().mean())
