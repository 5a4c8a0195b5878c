"""Whether an adversarial example survives being looked at again: alone, in a batch, in float64, in 8-bit pixels."""

from __future__ import annotations

import copy
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport.attacks.engine import Problem
from nbsupport.record import Record
from nbsupport.runtime import device_of, frozen, laid_out

BATCH = 256  # rows of the batch in which every example is scored again


@dataclass(frozen=True, eq=False)
class Stability(Record):
    """Which successes are undone when the example is scored again, one entry an example.

    An untargeted success is undone where the label is the true class again, a targeted one where it is no longer the
    target. An example that never succeeded reads as undone.

    Attributes
    ----------
    alone : (N,) bool
        In a batch of one.
    batch : (N,) bool
        In a batch of exactly 256 rows; images are repeated to fill the last one.
    float64 : (N,) bool
        With the model and the image in float64.
    eight_bit : (N,) bool
        After rounding to 8-bit pixels, round(255 x) / 255, in float32 and batches of the usual size.
    """

    alone: Tensor
    batch: Tensor
    float64: Tensor
    eight_bit: Tensor


def stability(model: nn.Module, x_adv: Tensor, y: Tensor, *, targets: Tensor | None = None) -> Stability:
    """Return which of the adversarial examples `x_adv` do not survive a second look.

    The size of a batch and the precision change a logit by its rounding, a file of 8-bit pixels changes the image by
    up to 1/510. An example that any of these undo lies on the decision boundary rather than beyond it, and a rate
    that counts it as a success is a rate of one machine.

    Parameters
    ----------
    model : nn.Module
        Maps images in [0, 1] to logits. The float64 model is a copy; `model` itself stays as it is.
    x_adv : (N, C, H, W) float32 in [0, 1]
        Successful adversarial examples; N = 0 is allowed.
    y : (N,) int64
        True labels.
    targets : (N,) int64, optional
        Classes that the attack was to reach.

    Returns
    -------
    Stability
        On the model's device. No pass takes more than 256 rows, or the usual batch where that is larger.

    Raises
    ------
    ValueError
        For images, labels or logits out of their range or shape.

    References
    ----------
    Method section 9: what is known to break conclusions about adversarial examples.
    """
    if isinstance(x_adv, Tensor) and isinstance(y, Tensor) and x_adv.ndim == 4 and len(x_adv) == len(y) == 0:
        nothing = torch.zeros(0, dtype=torch.bool, device=device_of(model, x_adv))
        return Stability(nothing, nothing, nothing, nothing)
    with frozen(model):
        problem = Problem.of(model, x_adv, y, targets)
        double = copy.deepcopy(model).double()
        return Stability(
            alone=_undone(problem, model, rows=1),
            batch=_undone(problem, model, rows=BATCH, fill=True),
            float64=_undone(problem, double, rows=problem.rows(), dtype=torch.float64),
            # What an attack would be free to begin with is what a success that is undone leaves.
            eight_bit=Problem.of(model, (255 * problem.x).round() / 255, y, targets).correct,
        )


def _undone(
    problem: Problem, model: nn.Module, *, rows: int, fill: bool = False, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Return which images (N,) are undone by `model` in batches of `rows`; with `fill` images repeat in the last."""
    x, n = problem.x, len(problem.x)
    index = torch.arange(-(-n // rows) * rows if fill else n, device=x.device) % n
    with torch.no_grad():
        labels = [model(laid_out(model, x[part].to(dtype))).argmax(1) for part in index.split(rows)]
    label = torch.cat(labels)[:n]
    return label != problem.label if problem.targeted else label == problem.label
