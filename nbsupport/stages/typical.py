"""The rays of one typical image in several versions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from nbsupport import runtime, tables
from nbsupport.boundary import Profile
from nbsupport.stages.attacks import load_examples
from nbsupport.stages.inputs import evaluation_data
from nbsupport.store import Run


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
