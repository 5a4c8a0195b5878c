"""The published loops, written plainly: what the engine is measured against.

They take the same model (as it is, its parameters constant) and NCHW batches in float32, and count nothing and retire
nothing beyond what the publications do.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from nbsupport import runtime

_NO_UPPER = 1e10  # the upper bound of the constant before the first success, as in the release
_FIRST_LOSS = 1e6  # that the loss of a search step is first compared with, as in the release


def carlini_wagner(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    search_steps: int = 4,
    steps: int = 200,
    lr: float = 0.05,
    initial_const: float = 1.0,
) -> Tensor:
    """Return the least L2 images (N, C, H, W) found by the published search, `x` where it found none.

    All images share one batch and one Adam until the end of each search step. At every tenth of the steps all stop
    when the loss, summed over the batch, is above .9999 of the value last looked at. Only the constant belongs to the
    image: tenfold until the first success, bisected from then on.

    Parameters
    ----------
    model : Module
        Maps images in [0, 1] to logits (N, L).
    x, y : Tensor (N, C, H, W) float32 in [0, 1], (N,) int64
        Images, and their labels.
    search_steps, steps : int
        Constants tried, and iterations at most with each.
    lr, initial_const : float
        Adam's learning rate in tanh space, and the first constant.

    References
    ----------
    Carlini & Wagner, "Towards Evaluating the Robustness of Neural Networks", S&P 2017, arXiv:1608.04644.
    """
    origin = ((x - 0.5) / 0.50001).atanh()
    const = torch.full_like(x[:, 0, 0, 0], initial_const)
    low, high = torch.zeros_like(const), torch.full_like(const, _NO_UPPER)
    best, best_l2 = x.clone(), torch.full_like(const, torch.inf)
    with runtime.frozen(model), torch.enable_grad():
        for _ in range(search_steps):
            w = origin.clone().requires_grad_()
            adam = torch.optim.Adam([w], lr=lr)
            found = torch.zeros_like(y, dtype=torch.bool)
            last_loss = _FIRST_LOSS
            for step in range(steps):
                x_adv = (w.tanh() + 1) / 2
                logits = model(x_adv)
                own = logits.gather(1, y[:, None]).squeeze(1)
                gap = own - logits.scatter(1, y[:, None], -torch.inf).amax(1)
                l2 = (x_adv - x).square().flatten(1).sum(1)
                loss = (l2 + const * gap.clamp(min=0)).sum()
                adam.zero_grad()
                loss.backward()
                adam.step()
                success = gap.detach() < 0
                found |= success
                better = success & (l2.detach() < best_l2)
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
    distance = torch.full((len(x), len(directions)), torch.inf, device=x.device)
    adjacent = torch.full_like(distance, -1, dtype=torch.int64)
    directions = directions.to(x.device)
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
    label = torch.empty(len(x), dtype=torch.int64, device=x.device)
    offsets = offsets.to(x.device)
    with runtime.frozen(model), torch.inference_mode():
        for i, image in enumerate(x):
            points = (image + radius * offsets.view(-1, *image.shape)).clamp(0, 1)
            label[i] = torch.bincount(model(points).argmax(1)).argmax()
    return label
