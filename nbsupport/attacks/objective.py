"""What an attack pushes below zero: the margin of the label, in every view of the image.

The margin of label y is Z_y - max_{j != y} Z_j. An untargeted attack lowers the margin of the true label, a targeted
one raises the margin of the target; `gap` is the margin with the sign that makes both a descent.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbsupport.runtime import Precision, channels_last, reduced_precision

# A search asks for a little more than the final check, so that a different batch, which rounds differently, agrees.
_ROUNDING = 1e-5


def gaps(logits: Tensor, label: Tensor, *, targeted: bool) -> Tensor:
    """Return the gap (N,) of `label` (N,) in `logits` (N, L): the margin, negated when `targeted`."""
    own = logits.gather(1, label[:, None]).squeeze(1)
    rival = logits.scatter(1, label[:, None], -torch.inf).amax(1)
    return rival - own if targeted else own - rival


@dataclass(frozen=True)
class Objective:
    """The gaps of images under a model, in one or many views."""

    model: nn.Module
    targeted: bool
    views: Tensor | None = None  # (V, C, H, W), added to the image; None: the image itself
    clip: bool = True  # clip the views to [0, 1] before the network
    precision: Precision = "float32"  # of gradients; decisions are always float32

    @property
    def count(self) -> int:
        """The number of views."""
        return 1 if self.views is None else len(self.views)

    def moved(self, x: Tensor) -> Tensor:
        """Return all views of `x` (N, C, H, W) before clipping: (N, V, C, H, W)."""
        return x[:, None] if self.views is None else x[:, None] + self.views

    def logits(self, moved: Tensor) -> Tensor:
        """Return the logits (R, L) of views (R, C, H, W), which are clipped here so that a graph sees the clipping."""
        clipped = moved.clamp(0, 1) if self.clip and self.views is not None else moved
        logits: Tensor = self.model(channels_last(clipped))
        return logits.float()

    def gaps(self, x: Tensor, label: Tensor) -> Tensor:
        """Return the gaps (N, V) of `x` without a graph, exactly as the model's logits give them."""
        with torch.no_grad():
            logits = self.logits(self.moved(x).flatten(0, 1))
        gap = gaps(logits, label.repeat_interleave(self.count), targeted=self.targeted)
        return gap.view(-1, self.count)

    def descend(
        self, x: Tensor, label: Tensor, weigh: Callable[[Tensor], Tensor], *, worst: int
    ) -> tuple[Tensor, Tensor, int, int]:
        """Return gaps (N, V), the gradient (N, C, H, W) of their weighted sum, and the passes forward and backward.

        `weigh` maps gaps (N, K) to weights (N, K). Only the `worst` views of an image (of largest gap) enter the
        gradient: where these are few, a pass over all views without a graph and one over the worst with a graph cost
        V + 3 worst instead of 3 V. In mixed precision the gaps are float32 and only the gradient is not.
        """
        moved = self.moved(x)
        if self.precision == "float32" and 1.5 * worst >= self.count:
            return *self._gradient(moved, label, weigh), self.count, self.count
        with torch.no_grad():
            logits = self.logits(moved.flatten(0, 1))
        gap = self._cautious(logits, label.repeat_interleave(self.count)).view(-1, self.count)
        rows = torch.arange(len(x), device=x.device)[:, None]
        _, gradient = self._gradient(moved[rows, gap.topk(worst, dim=1).indices], label, weigh)
        return gap, gradient, self.count + worst, worst

    def _gradient(self, moved: Tensor, label: Tensor, weigh: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        n, views = moved.shape[:2]
        batch = moved.flatten(0, 1).detach().requires_grad_()
        with torch.enable_grad(), reduced_precision(self.precision, batch.device):
            gap = self._cautious(self.logits(batch), label.repeat_interleave(views))
        weights = weigh(gap.detach().view(n, views))
        (gradient,) = torch.autograd.grad(gap, batch, weights.flatten())
        return gap.detach().view(n, views), gradient.reshape(n, views, *gradient.shape[1:]).sum(1)

    def _cautious(self, logits: Tensor, label: Tensor) -> Tensor:
        return gaps(logits, label, targeted=self.targeted) + _ROUNDING * logits.detach().abs().amax(1)


def cross_entropy_gradient(model: nn.Module, x: Tensor, label: Tensor, *, targeted: bool) -> tuple[Tensor, Tensor]:
    """Return the logits (N, L) and the gradient (N, C, H, W) that raises the cross-entropy (targeted: lowers it)."""
    batch = channels_last(x.detach()).requires_grad_()
    with torch.enable_grad():
        logits = model(batch)
        loss = F.cross_entropy(logits, label, reduction="sum")
    (gradient,) = torch.autograd.grad(loss, batch)
    return logits.detach(), -gradient if targeted else gradient
