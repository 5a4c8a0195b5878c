"""What an attack pushes below zero: the margin of the label, in every view of the image.

The margin of label y is Z_y - max_{j != y} Z_j. An untargeted attack lowers the margin of the true label, a targeted
one raises the margin of the target; the `gap` is the margin with the sign that makes both a descent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nbsupport import checks
from nbsupport.attacks.problem import Problem
from nbsupport.runtime import PRECISIONS, Precision, reduced_precision

Weigh = Callable[[Tensor], Tensor]  # gaps (N, K) -> weights (N, K)

# A search asks for a little more than the final check, so that a different batch, which rounds differently, agrees:
# this share of the spread of an image's logits.
ROUNDING = 1e-5


def gaps(logits: Tensor, label: Tensor, *, targeted: bool) -> Tensor:
    """Return the gap (N,) of `label` (N,) in `logits` (N, L): the margin, negated when `targeted`."""
    own = logits.gather(1, label[:, None]).squeeze(1)
    rival = logits.scatter(1, label[:, None], -torch.inf).amax(1)
    return rival - own if targeted else own - rival


def smooth_gaps(logits: Tensor, label: Tensor, temperature: Tensor, *, targeted: bool) -> Tensor:
    """Return the gaps (N,) with a soft maximum over the rivals, at `temperature` (N,) or () in logits.

    At temperature 1 their gradient is that of the cross-entropy without its factor 1 - p_y, which is positive but
    underflows in float32 where the model is sure.
    """
    own = logits.gather(1, label[:, None]).squeeze(1)
    rivals = logits.scatter(1, label[:, None], -torch.inf) / temperature[..., None]
    soft = temperature * rivals.logsumexp(1)
    return soft - own if targeted else own - soft


def across(gap: Tensor, confidence: float = 0.0) -> Tensor:
    """Return which gaps lie beyond the boundary: at most -confidence, and strictly below 0."""
    return (gap <= -confidence) & (gap < 0)


@dataclass(frozen=True)
class Objective:
    """The gaps of a problem's images, in one or many views."""

    problem: Problem
    views: Tensor | None = None  # (V, C, H, W), added to the image; None: the image itself
    clip: bool = True  # clip the views to [0, 1] before the network
    precision: Precision = "float32"  # of gradients; decisions are always float32

    def __post_init__(self) -> None:
        checks.choice(self.precision, PRECISIONS, name="precision")

    @property
    def count(self) -> int:
        """The number of views."""
        return 1 if self.views is None else len(self.views)

    def gaps(self, x: Tensor, label: Tensor, *, slack: float = 0.0) -> Tensor:
        """Return the gaps (N, V) of `x` (N, C, H, W) without a graph, plus `slack` times the spread of the logits."""
        with torch.no_grad():
            logits = self._logits(self._moved(x).flatten(0, 1))
        gap = self._gap(logits, label.repeat_interleave(self.count), slack)
        return gap.view(-1, self.count)

    def descend(
        self, x: Tensor, label: Tensor, weigh: Weigh, *, worst: int, temperature: Tensor | None = None
    ) -> tuple[Tensor, Tensor, int, int]:
        """Return cautious gaps (N, V), the gradient (N, C, H, W) of their weighted sum, passes forward and backward.

        Only the `worst` views of an image (of largest gap) enter the gradient: where these are few, a pass over all
        views without a graph and one over the worst with a graph cost V + 3 worst instead of 3 V. In mixed precision
        the gaps are float32 and only the gradient is not. With a `temperature` (N,) the gradient is that of the smooth
        gaps.
        """
        moved = self._moved(x)
        if self.precision == "float32" and 1.5 * worst >= self.count:
            return *self._gradient(moved, label, weigh, temperature), self.count, self.count
        gap = self.gaps(x, label, slack=ROUNDING)
        rows = torch.arange(len(x), device=x.device)[:, None]
        hardest = moved[rows, gap.topk(worst, dim=1).indices]
        _, gradient = self._gradient(hardest, label, weigh, temperature)
        return gap, gradient, self.count + worst, worst

    def ascend(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return gaps (N,) and the direction (N, C, H, W) that raises the cross-entropy (targeted: lowers it)."""
        gap, pull = self._gradient(x[:, None], label, torch.ones_like, torch.ones(len(x), device=x.device), slack=0.0)
        return gap.squeeze(1), -pull

    def _moved(self, x: Tensor) -> Tensor:
        """Return all views of `x` before clipping (N, V, C, H, W)."""
        return x[:, None] if self.views is None else x[:, None] + self.views

    def _gradient(
        self,
        moved: Tensor,
        label: Tensor,
        weigh: Weigh,
        temperature: Tensor | None,
        *,
        slack: float = ROUNDING,
    ) -> tuple[Tensor, Tensor]:
        n, views = moved.shape[:2]
        label = label.repeat_interleave(views)
        batch = moved.flatten(0, 1).detach().requires_grad_()
        with torch.enable_grad(), reduced_precision(self.precision, batch.device):
            logits = self._logits(batch)
            gap = descended = self._gap(logits, label, slack)
            if temperature is not None:
                soft = temperature.repeat_interleave(views)
                descended = smooth_gaps(logits, label, soft, targeted=self.problem.targeted)
        weights = weigh(gap.detach().view(n, views))
        (gradient,) = torch.autograd.grad(descended, batch, weights.flatten())
        return gap.detach().view(n, views), gradient.reshape(moved.shape).sum(1)

    def _logits(self, moved: Tensor) -> Tensor:
        """Return the logits of views (R, C, H, W), clipped inside the graph: a clipped pixel does not move."""
        return self.problem.logits(moved.clamp(0, 1) if self.clip and self.views is not None else moved)

    def _gap(self, logits: Tensor, label: Tensor, slack: float) -> Tensor:
        """Return the gaps (R,) plus `slack` times the spread of the logits."""
        fixed = logits.detach()
        return gaps(logits, label, targeted=self.problem.targeted) + slack * (fixed.amax(1) - fixed.amin(1))
