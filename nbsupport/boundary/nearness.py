"""Which images have a boundary within the first stride of a march, to first order."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nbsupport import runtime


def near_boundary(model: nn.Module, x: Tensor, reach: float) -> Tensor:
    """Return which images (N,) bool have a boundary nearer than `reach` in one random direction of six, or more.

    To first order: along a random direction of RMS 1 the margin between the two largest logits changes at a rate of
    about its gradient's L2 norm times a standard normal number. False for a model without gradients. (A boundary in one
    direction of forty, or a thousand, as the criterion let `bracket` miss as many rays on digits and CIFAR-10.)

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L); the caller keeps it frozen.
    x : Tensor (N, C, H, W) float32
        Images in [0, 1].
    reach : float
        RMS of a perturbation.
    """
    device = runtime.device_of(model, x)
    rows = runtime.rows_per_batch(model, tuple(x.shape[1:]), device)
    parts = [_margin_and_slope(model, batch.to(device)) for batch in x.detach().split(rows)]
    margin, slope = (torch.cat(values) for values in zip(*parts, strict=True))
    return margin <= reach * slope


def _margin_and_slope(model: nn.Module, x: Tensor) -> tuple[Tensor, Tensor]:
    """Return the margins (R,) of the predicted classes and the L2 norms (R,) of their gradients."""
    batch = runtime.laid_out(model, x).requires_grad_()
    with torch.enable_grad():
        largest = model(batch).topk(2).values
        margin = largest[:, 0] - largest[:, 1]
        if not margin.requires_grad:
            return margin, torch.zeros_like(margin)
        (gradient,) = torch.autograd.grad(margin.sum(), batch)
    return margin.detach(), gradient.flatten(1).norm(dim=1)
