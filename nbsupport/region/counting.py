"""The points around images: drawn, evaluated, and counted until the plurality needs no more of them."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from nbsupport.labels import Labeller
from nbsupport.region.vote import p_value

SHAPES = ("hypercube", "ball", "gaussian")
Plan = Callable[[Tensor], Tensor]  # counts (N, L) -> how many more points (N,) each image evaluates

_BATCHES = 8  # of logits in memory at once: the last one, which may be short, then matters little


def draw(shape: str, samples: int, x: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return offsets (samples, D) float32 of radius 1 for images `x` (N, C, H, W), D = C*H*W, drawn on the CPU.

    "hypercube": uniform in [-1, 1)^D. "ball": uniform in the L2 ball of radius sqrt(D), the points of RMS at most 1: a
    Gaussian direction, at the D-th root of a uniform number of the way out. "gaussian": standard normal pixels.
    """
    dim = x[0].numel()
    if shape == "hypercube":
        return 2 * torch.rand(samples, dim, generator=generator) - 1
    if shape == "gaussian":
        return torch.randn(samples, dim, generator=generator)
    direction = torch.randn(samples, dim, generator=generator, dtype=torch.float64)
    volume = torch.rand(samples, 1, generator=generator, dtype=torch.float64)
    direction /= direction.norm(dim=1, keepdim=True)
    return (math.sqrt(dim) * volume.pow(1 / dim) * direction).float()


def unit_rms(shape: str, dim: int) -> float:
    """Return the root mean square of the offsets of radius 1 in `dim` pixels, before clipping.

    Regions of different shape whose radius times this is the same move an image equally far.
    """
    return {"hypercube": math.sqrt(1 / 3), "ball": math.sqrt(dim / (dim + 2)), "gaussian": 1.0}[shape]


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


def until_decided(counts: Tensor, samples: int) -> Tensor:
    """Return the smallest number of points (N,) after which the plurality could be decided.

    After s more votes for the leader w, class j can no longer win if c_w + s > c_j + (R - s), R points remaining
    now (or if they are equal and w < j). Any other class would need at least as many, because the leader's votes
    count against it. So nothing can be decided before, and to look after exactly s points misses no stop.
    """
    remaining = samples - counts.sum(1, keepdim=True)
    winner = counts.argmax(1, keepdim=True)
    lead = counts.gather(1, winner) - counts
    classes = torch.arange(counts.shape[1], device=counts.device)
    needed = (remaining - lead + (classes < winner) + 1) // 2  # ceil
    return needed.masked_fill(classes == winner, 0).amax(1).clamp(min=0)


def looks_at(samples: int) -> list[int]:
    """Return the numbers of points 10, 20, 40, ..., `samples` after which the rule "alpha" looks at the counts."""
    looks, at = [], 10
    while at < samples:
        looks.append(at)
        at *= 2
    return [*looks, samples]


def until_look(counts: Tensor, looks: list[int], level: float) -> Tensor:
    """Return the points (N,) to the next look, 0 where the winner leads at `level` or all points were used."""
    used = counts.sum(1)
    ends = torch.tensor([*looks, looks[-1]], device=counts.device)
    more = ends[torch.searchsorted(ends[:-1], used, right=True)] - used
    undecided = torch.as_tensor(p_value(counts, counts.argmax(1)) > level, device=counts.device)
    return torch.where(undecided, more, 0)
