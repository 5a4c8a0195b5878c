"""The points around all images, evaluated: counted until a plan says enough, or all of them averaged."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from nbsupport.labels import Labeller

Plan = Callable[[Tensor], Tensor]  # counts (N, L) -> how many more points (N,) each image evaluates

_BATCHES = 8  # of logits in memory at once: the last one, which may be short, then matters little


def count(label: Labeller, images: int, radius: float, plan: Plan) -> Tensor:
    """Return the counts (N, L): each image evaluates as many further points as `plan` says until it says 0."""
    counts = torch.zeros(images, label.num_classes, dtype=torch.int64, device=label.device)
    used = counts.sum(1)
    while True:
        more = plan(counts)
        image = torch.arange(images, device=label.device).repeat_interleave(more)  # (R,), R = more.sum()
        if not len(image):
            return counts
        first = used - (more.cumsum(0) - more)
        point = torch.arange(len(image), device=label.device) + first[image]
        found = label(image, point, torch.full((len(image),), radius, device=label.device))
        counts.index_put_((image, found), torch.ones_like(found), accumulate=True)
        used = used + more


def average(label: Labeller, images: int, radius: float, samples: int, *, softmax: bool) -> tuple[Tensor, Tensor]:
    """Return the mean (N, L) float64 of the logits of all points, or of their softmax, and the counts (N, L)."""
    means, counts = [], []
    every = torch.arange(samples, device=label.device)
    for some in torch.arange(images, device=label.device).split(max(1, _BATCHES * label.rows // samples)):
        image, point = some.repeat_interleave(samples), every.repeat(len(some))
        z = label.logits(image, point, torch.full((len(image),), radius, device=label.device))
        z = z.view(len(some), samples, -1)
        found = z.argmax(2)  # (images, samples)
        counts.append(torch.zeros_like(z[:, 0], dtype=torch.int64).scatter_add_(1, found, torch.ones_like(found)))
        means.append((z.double().softmax(2) if softmax else z.double()).mean(1))
    return torch.cat(means), torch.cat(counts)
