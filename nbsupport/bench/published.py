"""The published loops, written plainly: what the engine is measured against.

They take the same model (as it is, its parameters constant) and NCHW batches in float32, and count nothing and retire
nothing beyond what the publications do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nbsupport import runtime

_NO_UPPER = 1e10  # the upper bound of the constant before the first success, as in the release


def carlini_wagner(
    model: nn.Module, x: Tensor, y: Tensor, *, search_steps: int = 4, steps: int = 200, lr: float = 0.05
) -> Tensor:
    """Return the least L2 images (N, C, H, W) found by the published search, `x` where it found none.

    All images share one batch and one Adam until the end of each search step. At every tenth of the steps all stop
    when the loss, summed over the batch, is above .9999 of the value last looked at. Only the constant belongs to the
    image: 1 at first, tenfold until the first success, bisected from then on.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x, y : Tensor (N, C, H, W) float32 in [0, 1], (N,) int64
        Images, and their labels.
    search_steps, steps : int
        Constants tried, and iterations at most with each.
    lr : float
        Adam's learning rate in tanh space.

    References
    ----------
    Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, arXiv:1608.04644.
    """
    const = torch.ones_like(x[:, 0, 0, 0])
    low, high = torch.zeros_like(const), torch.full_like(const, _NO_UPPER)
    best, best_l2 = x.clone(), torch.full_like(const, torch.inf)
    with runtime.frozen(model), torch.enable_grad():
        for _ in range(search_steps):
            w = ((x - 0.5) / 0.50001).atanh().requires_grad_()
            adam = torch.optim.Adam([w], lr=lr)
            found, last_loss = torch.zeros_like(y, dtype=torch.bool), 1e6  # to compare first with, as in the release
            for step in range(steps):
                x_adv = (w.tanh() + 1) / 2
                logits = model(x_adv)
                others = logits.scatter(1, y[:, None], -torch.inf)
                gap = logits.gather(1, y[:, None]).squeeze(1) - others.amax(1)
                l2 = (x_adv - x).square().flatten(1).sum(1)
                loss = (l2 + const * gap.clamp(min=0)).sum()
                (w.grad,) = torch.autograd.grad(loss, w)
                adam.step()
                found |= gap < 0
                better = (gap < 0) & (l2 < best_l2)
                best_l2 = torch.where(better, l2.detach(), best_l2)
                best = torch.where(better[:, None, None, None], x_adv.detach(), best)
                if step % max(1, steps // 10) == 0:
                    if loss.item() > 0.9999 * last_loss:
                        break
                    last_loss = loss.item()
            high = torch.where(found, torch.minimum(high, const), high)
            low = torch.where(found, low, torch.maximum(low, const))
            const = torch.where(high < _NO_UPPER, (low + high) / 2, 10 * const)
    return best


def scan(model: nn.Module, x: Tensor, directions: Tensor, magnitudes: Sequence[float]) -> tuple[Tensor, Tensor]:
    """Return distances (N, K) and adjacent classes (N, K) by the definition, one image after the other.

    The running rays of an image share one batch, at one magnitude after the other; a ray that has crossed leaves.

    References
    ----------
    He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018, section 4.
    """
    directions = directions.to(x.device)
    distance = directions.new_full((len(x), len(directions)), torch.inf)
    adjacent = torch.full_like(distance, -1, dtype=torch.int64)
    with runtime.frozen(model), torch.inference_mode():
        for i, image in enumerate(x):
            center = model(image[None]).argmax(1)
            running = torch.arange(len(directions), device=x.device)
            for t in torch.tensor(magnitudes).tolist():  # as float32 has them
                moved = (image + t * directions[running].view(-1, *image.shape)).clamp(0, 1)
                label = model(moved).argmax(1)
                crossed = label != center
                distance[i, running[crossed]] = t
                adjacent[i, running[crossed]] = label[crossed]
                running = running[~crossed]
                if not len(running):
                    break
    return distance, adjacent


def vote(model: nn.Module, x: Tensor, offsets: Tensor, *, radius: float) -> Tensor:
    """Return the plurality (N,) of the classes of x + radius * offsets (M, D), one image after the other.

    All points of an image share one batch; ties go to the lowest class.

    References
    ----------
    Cao & Gong, "Mitigating Evasion Attacks to Deep Neural Networks via Region-based Classification", 2017, section 4.
    """
    moves = radius * offsets.to(x.device).view(-1, *x.shape[1:])
    with runtime.frozen(model), torch.inference_mode():
        labels = [model((image + moves).clamp(0, 1)).argmax(1) for image in x]
        return torch.stack([torch.bincount(label).argmax() for label in labels])
