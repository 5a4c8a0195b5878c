"""Attacks within a budget in L-inf: FGSM, one step along the sign of the gradient, and PGD, projected ascent."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nbsupport import checks
from nbsupport.attacks.engine import Attack, Objective, Problem, Search, across, per_image
from nbsupport.pool import State
from nbsupport.runtime import PRECISIONS, Precision, frozen

Loss = Literal["cross-entropy", "margin"]


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
        Accepted as by every attack; the one gradient is taken in float32, as "mixed" has nothing to gain.

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
    checks.choice(precision, PRECISIONS, name="precision")
    with frozen(model):
        return _SignStep(Objective(Problem.of(model, x, y, targets)), eps=eps).attack()


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


def pgd_linf(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    eps: float,
    steps: int,
    step_size: float,
    restarts: int = 1,
    random_start: bool = True,
    loss: Loss = "cross-entropy",
    decay: bool = False,
    targets: Tensor | None = None,
    generator: torch.Generator | None = None,
    precision: Precision = "float32",
) -> Attack:
    """Return images within `eps` of `x` in L-inf, found by projected ascent of the loss.

    All steps are taken also where an earlier one succeeded, as published: the examples lie inside the other class,
    not on its boundary. Of the iterates of all restarts the one of least margin is returned; an image that succeeded
    leaves before the next restart.

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits.
    x : (N, C, H, W) float32 in [0, 1]
    y : (N,) int64
        True labels.
    eps, step_size : float
        Radius of the ball and size of a step, in [0, 1] units.
    steps : int
        Steps of one restart.
    restarts : int
        Starts tried for an image at most.
    random_start : bool
        Start uniformly within the ball; the offset is drawn once a restart and shared by all images.
    loss : {"cross-entropy", "margin"}
        What is ascended: the published cross-entropy, in which all rivals count, or the margin, negated, in which the
        strongest one does.
    decay : bool
        Let the step shrink to 0 along half a cosine, for a start with large steps: 2 `eps` is usual.
    targets : (N,) int64, optional
        Classes to reach.
    generator : torch.Generator, optional
        A CPU generator; None: torch's global one.
    precision : {"float32", "mixed"}
        "mixed" takes gradients in bfloat16 where an image's survive it (one pass more in each precision tells);
        success is confirmed in float32 on the returned image.

    Returns
    -------
    Attack

    Raises
    ------
    ValueError
        For images, labels, logits or settings out of their range or shape.

    References
    ----------
    Madry et al., "Towards Deep Learning Models Resistant to Adversarial Attacks", ICLR 2018, arXiv:1706.06083.
    """
    checks.number(eps, name="eps")
    checks.number(step_size, name="step_size")
    checks.count(steps, name="steps")
    checks.count(restarts, name="restarts")
    checks.choice(loss, get_args(Loss), name="loss")
    with frozen(model):
        problem = Problem.of(model, x, y, targets)
        shape = (restarts, *x.shape[1:])
        offsets = (2 * torch.rand(shape, generator=generator) - 1) * eps if random_start else torch.zeros(shape)
        objective, offsets = Objective(problem, precision=precision), offsets.to(problem.x.device)
        decayed = [(1 + math.cos(math.pi * step / steps)) / 2 if decay else 1.0 for step in range(steps)]
        sizes, smooth = [step_size * share for share in decayed], loss == "cross-entropy"
        return _ProjectedAscent(objective, offsets=offsets, eps=eps, sizes=sizes, smooth=smooth).attack()


@dataclass(eq=False, kw_only=True)
class _ProjectedAscent(Search):
    offsets: Tensor  # (restarts, C, H, W)
    eps: float
    sizes: list[float]  # of the steps of one restart
    smooth: bool  # ascend the cross-entropy, not the margin
    every: int = 1  # a step of the pool is a whole restart, so all its images are in the same phase
    keep_failures: bool = True

    def begin(self, state: State) -> None:
        state["restart"] = torch.zeros_like(state["index"])
        state["best_margin"] = torch.full_like(state["x"][:, 0, 0, 0], torch.inf)

    def step(self, state: State) -> None:
        low, high = (state["x"] - self.eps).clamp(min=0), (state["x"] + self.eps).clamp(max=1)
        x = (state["x"] + self.offsets[state["restart"]]).clamp(low, high)
        first = late = state["best_margin"]
        steps = len(self.sizes)
        for step, size in enumerate(self.sizes):
            margin, gradient = self.objective.ascend(x, state["label"], smooth=self.smooth)
            self._keep_best(state, x, margin)
            first = margin if step == 0 else first
            late = state["best_margin"] if step == steps - 1 - steps // 10 else late
            x = (x + size * gradient.sign()).clamp(low, high)
        self._keep_best(state, x, self.objective.margins(x, state["label"]).squeeze(1))
        state["forwards"] += steps + 1
        state["backwards"] += steps
        state["restart"] += 1
        gained = late - state["best_margin"] > 0.01 * first.abs()
        state["falling"] = gained & ~across(state["best_margin"])
        state["done"] = across(state["best_margin"]) | (state["restart"] == len(self.offsets))

    @staticmethod
    def _keep_best(state: State, x: Tensor, margin: Tensor) -> None:
        better = margin < state["best_margin"]
        state["best_margin"] = torch.where(better, margin, state["best_margin"])
        state["best"] = torch.where(per_image(better), x, state["best"])
