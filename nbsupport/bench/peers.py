"""Foolbox's attacks on the same model and images, where Foolbox is installed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from nbsupport.bench.results import Narrator
from nbsupport.bench.subject import Subject
from nbsupport.bench.timing import Case, Said

INSTALL = "pip install -e '.[peers]'"
UNPROJECTED = ("3.3.4",)  # releases whose L2FMNAttack.project scales by norms / norms, which is 1
_TUNED = "tuned: handed the model with constant weights in channels-last order, which their users would have to know of"


def foolbox(said: Said, narrator: Narrator) -> list[Case]:
    """Return Foolbox's minimum-norm attacks at the settings of ours, of each of which `said` is said.

    What their rows must be read with is noted; where Foolbox cannot be imported, a note says why and how to install it.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports names that scipy has moved
            library = importlib.import_module("foolbox")
    except ImportError as error:
        narrator.note(f"Foolbox cannot be imported, so its rows are left out ({error}); to install it: {INSTALL}")
        return []
    narrator.note(_TUNED)
    known, version = library.attacks, library.__version__
    if version in UNPROJECTED:
        fault = "FMN never shortens a perturbation in L2, so that its mean_rms is far from least"
        narrator.note(f"Foolbox {version}'s {fault}")

    def carlini_wagner(steps: int) -> Any:
        return known.L2CarliniWagnerAttack(
            binary_search_steps=4, steps=steps, stepsize=0.05, confidence=0, initial_const=1, abort_early=True
        )

    penalty, ddn, fmn = (wrapped(library, make) for make in (carlini_wagner, known.DDNAttack, known.L2FMNAttack))
    return [
        Case("Foolbox C&W 4 x 200", penalty, 200, 4 * 200 * 2, said, plain=True),
        Case("Foolbox C&W 4 x 200, tuned", penalty, 200, 4 * 200 * 2, said),
        Case("Foolbox DDN 200", ddn, 200, 200 * 2, said, plain=True),
        Case("Foolbox FMN 200", fmn, 200, 200 * 2, said, plain=True),
    ]


def wrapped(library: Any, make: Callable[..., Any]) -> Callable[[Subject, int], Tensor]:
    """Return the attack of `library` that `make(steps=...)` makes; it returns an image as it was where it failed."""

    def attack(subject: Subject, steps: int) -> Tensor:
        x = subject.x
        model = library.PyTorchModel(subject.model, bounds=(0, 1), device=x.device)
        _, found, _ = make(steps=steps)(model, x, library.criteria.Misclassification(subject.y), epsilons=None)
        x_adv: Tensor = found.detach()
        black = (x_adv == 0).flatten(1).all(1)  # what its Carlini & Wagner gives where it found nothing
        return torch.where(black[:, None, None, None], x, x_adv)

    return attack
