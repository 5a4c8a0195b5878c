"""Foolbox's attacks on the same model and images, where Foolbox is installed."""

from __future__ import annotations

import importlib
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from nbsupport import runtime
from nbsupport.bench.plain import plain

INSTALL = "pip install -e '.[peers]'"
_TUNED = "tuned: handed the model with constant weights in channels-last order, which their users would have to know of"
_UNPROJECTED = ("3.3.4",)  # releases whose L2FMNAttack.project scales by norms / norms, which is 1


class Absent(ImportError):  # noqa: N818  (a peer may be absent; that is no error)
    """Foolbox cannot be imported; the message says why and how to install it."""


@dataclass(frozen=True)
class Peer:
    """An attack of another library: its name, its steps, the passes of one image at most, and how to call it."""

    what: str
    steps: int
    passes: int
    attack: Callable[[nn.Module, Tensor, Tensor, int], Tensor]  # (model, x, y, steps) -> x_adv
    remark: str = ""  # what its row must be read with


def foolbox() -> list[Peer]:
    """Return Foolbox's minimum-norm attacks at the settings of ours; raises Absent where it cannot be imported."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # it imports names that scipy has moved
            library = importlib.import_module("foolbox")
    except ImportError as error:
        raise Absent(
            f"Foolbox cannot be imported, so its rows are left out ({error}); to install it: {INSTALL}"
        ) from None
    known = library.attacks

    def carlini_wagner(steps: int) -> Any:
        return known.L2CarliniWagnerAttack(
            binary_search_steps=4, steps=steps, stepsize=0.05, confidence=0, initial_const=1, abort_early=True
        )

    version = library.__version__
    remark = f"Foolbox {version}'s FMN never shortens a perturbation in L2, so that its mean_rms is far from least"
    return [
        Peer("Foolbox C&W 4 x 200", 200, 2 * 4 * 200, _call(library, carlini_wagner)),
        Peer("Foolbox C&W 4 x 200, tuned", 200, 2 * 4 * 200, _call(library, carlini_wagner, tuned=True), _TUNED),
        Peer("Foolbox DDN 200", 200, 2 * 200, _call(library, lambda steps: known.DDNAttack(steps=steps))),
        Peer(
            "Foolbox FMN 200",
            200,
            2 * 200,
            _call(library, lambda steps: known.L2FMNAttack(steps=steps)),
            remark if version in _UNPROJECTED else "",
        ),
    ]


def _call(
    library: Any, make: Callable[[int], Any], *, tuned: bool = False
) -> Callable[[nn.Module, Tensor, Tensor, int], Tensor]:
    def attack(model: nn.Module, x: Tensor, y: Tensor, steps: int) -> Tensor:
        with runtime.frozen(model) if tuned else plain(model):
            wrapped = library.PyTorchModel(model, bounds=(0, 1), device=x.device)
            _, found, _ = make(steps)(wrapped, x, library.criteria.Misclassification(y), epsilons=None)
        x_adv: Tensor = found.detach()
        black = (x_adv == 0).flatten(1).all(1)  # what its Carlini & Wagner gives where it found nothing
        return torch.where(black[:, None, None, None], x, x_adv)

    return attack
