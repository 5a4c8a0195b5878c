"""Which values of the settings a run can work with: checked before anything starts."""

from __future__ import annotations

import dataclasses
import math

from nbsupport import arguments
from nbsupport.presets import Settings

_CHOICES = {
    "pgd_schedule": ("fast", "pgd"),
    "augment": ("none", "crop", "crop-flip"),
    "pgd_augment": ("none", "crop", "crop-flip"),
    "brittle_solver": ("ddn", "adam"),
    "precision": ("float32", "mixed"),
    "targeted": ("off", "random", "least-likely"),
}
_FROM_ZERO = ("seed", "weight_decay", "label_smoothing", "fast_epochs", "confidence", "detector_shift")
_HIGHEST = dict.fromkeys(("label_smoothing", "magnitude_max", "radius", "eps", "view_eps"), 1.0)
_HIGHEST["detector_train_share"] = 0.95  # something must be left to test on


def require(settings: Settings) -> None:
    """Raise ValueError, naming the parameter, unless every value is one that a run can work with."""
    for name, value in dataclasses.asdict(settings).items():
        if name in _CHOICES:
            arguments.choice(value, _CHOICES[name], name=name)
        elif isinstance(value, bool):
            continue
        elif isinstance(value, int):
            arguments.count(value, name=name, low=0 if name in _FROM_ZERO else 1)
        elif isinstance(value, float):
            arguments.number(value, name=name, open_low=name not in _FROM_ZERO, high=_HIGHEST.get(name, math.inf))
    settings.magnitudes  # noqa: B018  (raises where there are none)
