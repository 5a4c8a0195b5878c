"""FGSM: one step along the sign of the gradient."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport import checks
from nbsupport.attacks.engine import Attack, Objective, Problem, Search
from nbsupport.pool import State
from nbsupport.runtime import Precision, frozen


def fgsm(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    targets: Tensor | None = None,
    precision: Precision = "float32",
) -> Attack:
    """Return `x + eps sign(gradient of the cross-entropy)`, clipped to [0, 1].

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits.
    x : (N, C, H, W) float32 in [0, 1]
    y : (N,) int64
        True labels.
    eps : float
        L-inf size of the step, in [0, 1] units.
    targets : (N,) int64, optional
        Classes to reach; the step then lowers the target's cross-entropy.
    precision : {"float32", "mixed"}
        "mixed" takes the gradient in bfloat16; success is confirmed in float32 on the returned image.

    Returns
    -------
    Attack

    Raises
    ------
    ValueError
        For images, labels or logits out of their range or shape.

    References
    ----------
    Goodfellow, Shlens & Szegedy, "Explaining and Harnessing Adversarial Examples", ICLR 2015, arXiv:1412.6572.
    """
    checks.number(eps, name="eps")
    with frozen(model):
        objective = Objective(Problem.of(model, x, y, targets), precision=precision)
        return _SignStep(objective, eps=eps).attack()


@dataclass(eq=False, kw_only=True)
class _SignStep(Search):
    eps: float
    every: int = 1
    keep_failures: bool = True

    def begin(self, state: State) -> None:
        pass

    def step(self, state: State) -> None:
        _, gradient = self.objective.ascend(state["x"], state["label"])
        state["best"] = (state["x"] + self.eps * gradient.sign()).clamp(0, 1)
        state["forwards"] += 1
        state["backwards"] += 1
        state["done"] = torch.ones_like(state["done"])
