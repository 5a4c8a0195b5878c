"""What becomes of a batch before the model learns from it: random crops and flips, and the inner maximisation."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nbsupport import checks
from nbsupport.runtime import frozen, laid_out

Adversary = Callable[[nn.Module, Tensor, Tensor], Tensor]
AUGMENTATIONS = ("none", "crop", "crop-flip")


def augmented(x: Tensor, generator: torch.Generator | None, *, flip: bool) -> Tensor:
    """Return `x` (N, C, H, W) cropped at random from a zero-padded frame and, if asked, flipped at random."""
    n, channels, height, width = x.shape
    pad = height // 8
    top, left = torch.randint(0, 2 * pad + 1, (2, n), generator=generator).to(x.device)
    flipped = (torch.rand(n, generator=generator) < 0.5 * flip).to(x.device)
    rows = top[:, None] + torch.arange(height, device=x.device)  # (N, H)
    columns = left[:, None] + torch.arange(width, device=x.device)  # (N, W)
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    padded = F.pad(x, (pad, pad, pad, pad))
    image = torch.arange(n, device=x.device)[:, None, None, None]
    channel = torch.arange(channels, device=x.device)[None, :, None, None]
    return padded[image, channel, rows[:, None, :, None], columns[:, None, None, :]]


def linf_adversary(*, eps: float, steps: int, step_size: float, generator: torch.Generator | None = None) -> Adversary:
    """Return the inner loop of adversarial training: projected ascent from a random start within `eps` in L-inf.

    Barer than `attacks.pgd_linf`: every image starts elsewhere, the last iterate is returned, nothing is counted or
    re-checked. With one step of 1.25 `eps` it is the single-step schedule of Wong, Rice & Kolter, "Fast is better
    than free", ICLR 2020, arXiv:2001.03994.
    """
    checks.number(eps, name="eps")
    checks.count(steps, name="steps")
    checks.number(step_size, name="step_size")

    def ascend(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        low, high = (x - eps).clamp(min=0), (x + eps).clamp(max=1)
        offset = (2 * torch.rand(x.shape, generator=generator) - 1) * eps
        x_adv = (x + offset.to(x.device)).clamp(low, high)
        with frozen(model), torch.enable_grad():
            for _ in range(steps):
                x_adv = x_adv.detach().requires_grad_()
                loss = F.cross_entropy(model(laid_out(model, x_adv)), y, reduction="sum")
                (gradient,) = torch.autograd.grad(loss, x_adv)
                x_adv = (x_adv.detach() + step_size * gradient.sign()).clamp(low, high)
        return x_adv

    return ascend
