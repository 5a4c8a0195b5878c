"""Every setting of a run, with its source: one table a data set, and what each preset changes in it.

Lengths are in [0, 1] units. Sources: [H] He, Li & Song 2018 and their release [H-code],
[C] Cao & Gong 2017, [M] Madry et al. 2018; where none is named the value is ours.
"""

import dataclasses
import itertools
import math
import tomllib
import types
import typing
from collections.abc import Mapping
from fractions import Fraction
from pathlib import Path
from typing import Any, Literal

from nbsupport import checks

MODELS = ("normal", "pgd")
PRESETS = ("smoke", "standard", "paper")
OWN = "own"  # weights that a model of the user's comes with
DATASETS = ("digits", "mnist", "cifar10", "folder:PATH", "npz:PATH")
# The first setting of each group of `Settings`, and the notebook that uses it first.
_GROUPS = {
    "dataset": "01",
    "model": "02",
    "targeted": "03",
    "directions": "05",
    "detector_steps": "06",
    "adaptive_n": "07",
}


@dataclasses.dataclass(frozen=True)
class Settings:
    """The settings of one run, in the order of the notebooks that first use them.

    Every field can be overridden by name (`-p NAME VALUE`).
    """

    # 01_datasets
    dataset: str
    preset: str
    train_data: str  # a data set's name, folder:PATH or npz:PATH
    test_data: str
    root: str | None = None  # where torchvision's files are; None: $NBSUPPORT_DATA, else ./data
    seed: int = 0
    n: int = 100  # test images given to every attack, the first in stored order
    pgd_n: int | None = None  # of these, given to every attack on the PGD-trained model; None: all
    train_n: int | None = None  # training images used, the first in stored order; None: all
    validation_n: int = 200  # of these, kept aside for validation
    eps: float = 0.15  # L-inf budget of training, FGSM and PGD

    # 02_training [M]
    model: str = "digits_cnn"  # a name of models.build, or package.module:function
    weights: str | None = None  # a file of trained weights of the normal model; "own": those that `model` comes with
    pgd_model: str | None = None  # of the PGD-trained model; None: as `model`
    pgd_weights: str | None = None
    epochs: int = 40  # normal training
    pgd_schedule: Literal["fast", "pgd"] = "fast"  # "fast": single-step epochs, then PGD epochs; "pgd": PGD throughout
    fast_epochs: int = 30
    pgd_epochs: int = 10
    batch_size: int = 64
    lr: float = 0.1
    weight_decay: float = 2e-3
    label_smoothing: float = 0.0  # of the normal model; 0.1 caps its logits, and OPTSTRONG then fails on 14 of 19
    augment: Literal["none", "crop", "crop-flip"] = "crop"  # of the normal model
    pgd_augment: Literal["none", "crop", "crop-flip"] = "none"  # of the PGD-trained model
    train_steps: int = 10
    train_step_size: float = 0.0375
    pgd_steps: int = 40  # of PGD as an attack
    pgd_step_size: float = 0.01
    pgd_restarts: int = 1
    region_n: int = 500  # benign images whose accuracy is measured: under PGD, and of the vote
    # "mixed": training, attacks, votes and probes in bfloat16; what they find is confirmed in float32.
    precision: Literal["float32", "mixed"] = "float32"

    # 03_attacks, method section 4
    targeted: Literal["off", "random", "least-likely"] = "off"  # the class that every attack is to reach
    brittle_solver: Literal["ddn", "adam"] = "ddn"  # OPTBRITTLE's solver; "adam": Carlini & Wagner
    brittle_steps: int = 200  # of ddn
    confidence: float = 10.0  # OPTSTRONG's
    strong_n: int = 100  # images given to OPTSTRONG, which is slow
    search_steps: int = 4  # of every adam search
    adam_steps: int = 1000  # with each constant, at most
    lr_adam: float = 0.05
    initial_const: float = 1.0
    view_eps: float = 0.15  # RMS of one view of OPTMARGIN
    views: int = 20
    ddn_steps: int = 200
    cost_n: int = 16  # images of each point of the curves of what evading the vote costs
    adam_n: int = 36  # images given to OPTMARGIN-adam and OPTMARGIN-authors, which are slow
    pgd_adam_n: int | None = None  # and on the PGD-trained model; None: as many
    authors_lr: float = 0.2
    authors_const: float = 0.2
    distance_scale: float = 255.0**2  # by which `authors` divides the squared distance
    radius: float = 0.15  # of region classification [C], [H]
    samples: int = 100

    # 05_boundary_analysis [H]
    directions: int | None = 64  # None: one for each pixel and channel, at most 1000
    negate: bool = True
    magnitude_step: float = 0.01
    magnitude_max: float = 0.99
    boundary_n: int = 100  # images probed, of every set of examples
    audit_rays: int = 512  # rays visited in full, of every set of examples
    geometry_n: int = 12  # images whose triple points, re-entries and normals are found, of every such set
    geometry_rays: int = 32  # directions along which re-entries and normals are found
    triple_pairs: int = 64  # random planes through an image in which triple points are counted

    # 06_detector [H-code]
    detector_steps: int = 500
    detector_pairs: int = 64
    detector_folds: int = 5  # of cross-validation over images
    detector_seeds: int = 1  # networks trained on the same images
    detector_on: Literal["main", "every"] = "main"  # trained on all, OPTBRITTLE, OPTMARGIN; or on every attack too
    detector_shift: float = 0.0  # the detector sees (distance - shift) / scale
    detector_scale: float = 1.0

    # 07_adaptive_attacks
    adaptive_n: int = 30  # attacked images given to every adaptive attack, the first in stored order
    adaptive_passes: int = 2000  # network evaluations that one attack may spend on an image, about

    @property
    def magnitudes(self) -> list[float]:
        """The grid of magnitudes along a direction: the multiples of `magnitude_step` up to `magnitude_max`."""
        checks.number(self.magnitude_step, name="magnitude_step", open_low=True)
        checks.number(self.magnitude_max, name="magnitude_max", low=self.magnitude_step)
        count = math.floor(self.magnitude_max / self.magnitude_step * (1 + 1e-9))  # .49 / .01 is a little below 49
        if count > _MOST_MAGNITUDES:
            raise ValueError(
                f"expected at most {_MOST_MAGNITUDES} magnitudes, got {count} from magnitude_step "
                f"{self.magnitude_step:g} up to magnitude_max {self.magnitude_max:g}; raise the one or lower the other"
            )
        return [self.magnitude_step * (i + 1) for i in range(count)]


# Which numbers a run can work with, where that is not simply above 0.
_FROM_ZERO = ("seed", "weight_decay", "label_smoothing", "fast_epochs", "confidence", "detector_shift")
_HIGHEST = dict.fromkeys(("label_smoothing", "magnitude_max", "radius", "eps", "view_eps"), 1.0)
_LOWEST = {"detector_folds": 2}
_HINTS = typing.get_type_hints(Settings)
_MOST_MAGNITUDES = 10_000
FEWEST_RAYS = 36  # of the detector: (36 - 8) // 4 + 1 = 8, the length of its second kernel


def settings(dataset: str, preset: str = "standard", overrides: Mapping[str, Any] | None = None) -> Settings:
    """Return the settings of `preset` on `dataset` with `overrides` applied.

    A `folder:` or `npz:` data set starts from CIFAR-10's settings; all paths become absolute. Raises ValueError for an
    unknown data set, preset or parameter (with the close matches) and for a value of the wrong type.
    """
    checks.choice(preset, PRESETS, name="preset")
    own_data = dataset.startswith(("folder:", "npz:"))
    if not own_data:
        checks.choice(dataset, DATASETS, name="data set")
    tables = tomllib.loads(Path(__file__).with_name("presets.toml").read_text(encoding="utf-8"))
    family = tables["cifar10" if own_data else dataset]
    values: dict[str, Any] = {"train_data": dataset, "test_data": dataset}
    values |= {name: value for name, value in family.items() if name not in PRESETS}
    values |= tables.get(preset, {}) | family.get(preset, {}) | (tables["own"] if own_data else {}) | (overrides or {})
    known = {name: hint for name, hint in _HINTS.items() if name not in ("dataset", "preset")}
    for name, value in values.items():
        checks.choice(name, known, name="parameter")
        values[name] = _typed(name, value, known[name])
    for name in ("train_data", "test_data"):
        values[name] = _absolute_source(values[name])
    for name in ("root", "weights", "pgd_weights"):
        if values.get(name) not in (None, OWN):
            values[name] = str(Path(values[name]).expanduser().resolve())
    return Settings(dataset=_absolute_source(dataset), preset=preset, **values)


def used_by(stage: str) -> list[str]:
    """Return the names of the settings that the results of the notebook `stage` depend on."""
    names = (field.name for field in dataclasses.fields(Settings))
    return list(itertools.takewhile(lambda name: _GROUPS.get(name, "") <= stage[:2], names))


def require(settings: Settings) -> None:
    """Raise ValueError, naming the parameter, unless every value is one that a run can work with."""
    for name, value in dataclasses.asdict(settings).items():
        if typing.get_origin(_HINTS[name]) is Literal:
            checks.choice(value, typing.get_args(_HINTS[name]), name=name)
        elif isinstance(value, int) and not isinstance(value, bool):
            checks.count(value, name=name, low=0 if name in _FROM_ZERO else _LOWEST.get(name, 1))
        elif isinstance(value, float):
            checks.number(value, name=name, open_low=name not in _FROM_ZERO, high=_HIGHEST.get(name, math.inf))
    if settings.detector_folds > settings.n:
        raise ValueError(
            f"expected at least as many images as folds ({settings.detector_folds}), got n={settings.n}; raise n or "
            "lower detector_folds"
        )
    settings.magnitudes  # noqa: B018  (raises where there are none, or too many)
    rays = math.inf if settings.directions is None else settings.directions * (1 + settings.negate)
    if rays < FEWEST_RAYS:
        raise ValueError(
            f"expected at least {FEWEST_RAYS} rays, which the detector needs, got {rays} from directions "
            f"{settings.directions} {'and their negations' if settings.negate else 'without their negations'}; raise it"
        )


def _absolute_source(source: str) -> str:
    kind, separator, path = source.partition(":")
    return f"{kind}:{Path(path).expanduser().resolve()}" if separator else source


def _typed(name: str, value: Any, hint: Any) -> Any:
    """Return `value`, which may be text from a command line, as the type `hint` of the field `name`."""
    optional = isinstance(hint, types.UnionType)
    if optional and value in (None, "none", "None", "null"):
        return None
    kind: Any = str if typing.get_origin(hint) is Literal else typing.get_args(hint)[0] if optional else hint
    try:
        if value is None or (isinstance(value, bool) and kind is not bool):
            raise ValueError
        if kind is bool:
            return {"true": True, "1": True, "yes": True, "false": False, "0": False, "no": False}[str(value).lower()]
        converted = kind(Fraction(value) if kind is float and "/" in str(value) else value)
        if kind is int and float(value) != converted:
            raise ValueError
    except (ValueError, TypeError, KeyError, ArithmeticError):
        raise ValueError(f"expected {name} as {kind.__name__}, got {value!r}") from None
    if kind is float and not math.isfinite(converted):
        raise ValueError(f"expected {name} as a finite number, got {value!r}")
    return converted
