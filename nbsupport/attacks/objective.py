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

Weigh = Callable[[Tensor], Tensor]  # gaps -> weights of the same shape

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


def _picks_rows(x: Tensor) -> bool:
    """Return whether to evaluate chosen rows only: on a GPU the choice would make the host wait at every step."""
    return x.device.type == "cpu"


def across(gap: Tensor, confidence: float = 0.0) -> Tensor:
    """Return which gaps lie beyond the boundary: at most -confidence, and strictly below 0."""
    return (gap <= -confidence) & (gap < 0)


@dataclass(frozen=True)
class Descent:
    """One look at N images: cautious gaps (N, V), the gradient (N, C, H, W) to descend, passes spent (N,) int64."""

    gap: Tensor
    pull: Tensor
    forwards: Tensor
    backwards: Tensor


@dataclass(frozen=True)
class Objective:
    """The gaps of a problem's images, in one or many views."""

    problem: Problem
    views: Tensor | None = None  # (V, C, H, W), added to the image; None: the image itself
    clip: bool = True  # clip the views to [0, 1] before the network
    precision: Precision = "float32"  # of the search; what it finds is confirmed in float32

    def __post_init__(self) -> None:
        checks.choice(self.precision, PRECISIONS, name="precision")

    @property
    def count(self) -> int:
        """The number of views."""
        return 1 if self.views is None else len(self.views)

    def gaps(self, x: Tensor, label: Tensor, *, slack: float = 0.0) -> Tensor:
        """Return the gaps (N, V) of `x` (N, C, H, W) in float32, plus `slack` times the spread of the logits."""
        return self._look(*self._moved(x, label), slack=slack, precision="float32").view(-1, self.count)

    def confirmed(self, found: Tensor, x: Tensor, label: Tensor, confidence: float) -> tuple[Tensor, Tensor]:
        """Return which of the images `found` (N,) are across by `confidence` in float32 too, and the passes (N,) spent.

        A search in float32 has looked already. On a CPU only the images found are looked at again, on a GPU all.
        """
        if self.precision == "float32":
            return found, torch.zeros_like(label)
        if not _picks_rows(x):
            across_too = across(self.gaps(x, label, slack=ROUNDING), confidence).all(1)
            return found & across_too, torch.full_like(label, self.count)
        confirmed = found.clone()
        if found.any():
            confirmed[found] = across(self.gaps(x[found], label[found], slack=ROUNDING), confidence).all(1)
        return confirmed, found * self.count

    def hinge(self, x: Tensor, label: Tensor, confidence: float, expected: Tensor) -> Descent:
        """Descend the sum of max(gap, -confidence) over the views.

        A view that is across by `confidence` has no slope and needs no backward pass. Of many views, on a CPU, only
        those `expected` (N, V) to have a slope build a graph, and those that turn out to have one are caught up. With
        one view, and on a GPU, all rows build a graph.
        """
        moved, labels = self._moved(x, label)

        def slope(gap: Tensor) -> Tensor:
            return (~across(gap, confidence)).to(gap.dtype)  # a tie is not across: it pulls too

        forwards, backwards = torch.ones_like(labels), torch.ones_like(labels)
        # With one view most rows have a slope, and two small batches are slower than one.
        if self.count == 1 or not _picks_rows(x):
            return self._descent(*self._gradient(moved, labels, slope), forwards, backwards)
        gap, pull = moved.new_zeros(len(moved)), torch.zeros_like(moved)
        with_graph, without = (mask.flatten().nonzero().squeeze(1) for mask in (expected, ~expected))
        late = without
        if len(without):
            gap[without] = self._look(moved[without], labels[without])
            late = without[~across(gap[without], confidence)]
        for rows in (with_graph, late):
            if len(rows):
                gap[rows], pull[rows] = self._gradient(moved[rows], labels[rows], slope)
        forwards[late] = 2
        backwards[without] = 0
        backwards[late] = 1
        return self._descent(gap, pull, forwards, backwards)

    def worst(self, x: Tensor, label: Tensor, weigh: Weigh, *, count: int, temperature: Tensor) -> Descent:
        """Descend the smooth gaps, at `temperature` (N,), of the `count` views of largest gap; `weigh` takes (N, K).

        A pass over all views without a graph and one over the worst with a graph cost V + 3 count instead of 3 V.
        """
        moved, labels = self._moved(x, label)
        gap, chosen, views = None, moved, self.count
        if 1.5 * count < views:
            gap = self._look(moved, labels).view(-1, views)
            hardest = gap.topk(count, dim=1).indices
            rows = (hardest + views * torch.arange(len(x), device=x.device)[:, None]).flatten()
            chosen, views = moved[rows], count

        def slope(gap: Tensor) -> Tensor:
            return weigh(gap.view(-1, views)).flatten()

        own = label.repeat_interleave(views)
        seen, pull = self._gradient(chosen, own, slope, temperature.repeat_interleave(views))
        spent = torch.full_like(label, views)
        if gap is None:
            gap, looked = seen.view(-1, views), torch.zeros_like(label)
        else:
            looked = torch.full_like(label, self.count)
        return Descent(gap, pull.view(-1, views, *x.shape[1:]).sum(1), looked + spent, spent)

    def ascend(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return gaps (N,) and the direction (N, C, H, W) that raises the cross-entropy (targeted: lowers it)."""
        temperature = torch.ones(len(x), device=x.device)
        gap, pull = self._gradient(x, label, torch.ones_like, temperature, slack=0.0)
        return gap, -pull

    def _moved(self, x: Tensor, label: Tensor) -> tuple[Tensor, Tensor]:
        """Return all views of `x` (N, C, H, W) before clipping, as rows (N * V, C, H, W), and their labels."""
        moved = x[:, None] if self.views is None else x[:, None] + self.views
        return moved.flatten(0, 1), label.repeat_interleave(self.count)

    def _descent(self, gap: Tensor, pull: Tensor, forwards: Tensor, backwards: Tensor) -> Descent:
        """Return what was found for views, one a row, by image."""
        views = self.count
        by_image = pull.view(-1, views, *pull.shape[1:]).sum(1)
        return Descent(gap.view(-1, views), by_image, forwards.view(-1, views).sum(1), backwards.view(-1, views).sum(1))

    def _look(
        self, moved: Tensor, label: Tensor, *, slack: float = ROUNDING, precision: Precision | None = None
    ) -> Tensor:
        """Return the gaps (R,) of views (R, C, H, W) without a graph, in the precision of the search if not stated."""
        with torch.no_grad(), reduced_precision(precision or self.precision, moved.device):
            return self._gap(self._logits(moved), label, slack)

    def _gradient(
        self, moved: Tensor, label: Tensor, weigh: Weigh, temperature: Tensor | None = None, *, slack: float = ROUNDING
    ) -> tuple[Tensor, Tensor]:
        """Return the gaps (R,) of views (R, C, H, W), and the gradients (R, C, H, W) of these, times their weights.

        With a `temperature` (R,) the gradients are those of the smooth gaps.
        """
        batch = moved.detach().requires_grad_()
        with torch.enable_grad(), reduced_precision(self.precision, batch.device):
            logits = self._logits(batch)
            gap = descended = self._gap(logits, label, slack)
            if temperature is not None:
                descended = smooth_gaps(logits, label, temperature, targeted=self.problem.targeted)
        (gradient,) = torch.autograd.grad(descended, batch, weigh(gap.detach()))
        return gap.detach(), gradient

    def _logits(self, moved: Tensor) -> Tensor:
        """Return the logits of views (R, C, H, W), clipped inside the graph: a clipped pixel does not move."""
        return self.problem.logits(moved.clamp(0, 1) if self.clip and self.views is not None else moved)

    def _gap(self, logits: Tensor, label: Tensor, slack: float) -> Tensor:
        """Return the gaps (R,) plus `slack` times the spread of the logits."""
        fixed = logits.detach()
        return gaps(logits, label, targeted=self.problem.targeted) + slack * (fixed.amax(1) - fixed.amin(1))
