"""The first images of one model beside what the attacks made of them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nbsupport import region, runtime
from nbsupport.intervals import Rate, wilson
from nbsupport.stages.attacks import Examples
from nbsupport.stages.inputs import by_model, load_model
from nbsupport.store import Run


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
