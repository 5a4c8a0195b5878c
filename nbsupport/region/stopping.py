"""When a vote may stop: how many more points each image needs before the next look at its counts."""

from __future__ import annotations

import torch
from torch import Tensor

from nbsupport.region.vote import p_value


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
