"""The detector's network and its training, with every random number from a generator."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nbsupport.runtime import full_float32

FEWEST_RAYS = 36  # (36 - 8) // 4 + 1 = 8, the length of the second kernel
PURITIES = 3


class BoundaryNet(nn.Module):
    """The network of [1]: two convolutions along the sorted distances, joined by the purities.

    Dropout is a function handed to `forward`, so that its noise has a generator and evaluation has none.

    References
    ----------
    .. [1] He, Li & Song, "Decision Boundary Analysis of Adversarial Examples", ICLR 2018, and its released code.
    """

    def __init__(self, rays: int) -> None:
        super().__init__()
        length = ((rays - 8) // 4 + 1 - 8) // 4 + 1
        self.conv1 = nn.Conv1d(1, 8, 8, stride=4)
        self.conv2 = nn.Conv1d(8, 16, 8, stride=4)
        self.linear1 = nn.Linear(16 * length + PURITIES, 32)
        self.linear2 = nn.Linear(32, 2)

    def forward(self, distances: Tensor, purities: Tensor, noise: Callable[[Tensor], Tensor] = lambda h: h) -> Tensor:
        """Return the logits (N, 2) of benign and adversarial from distances (N, K), sorted and scaled, and purities."""
        h = noise(F.relu(self.conv1(distances[:, None])))  # (N, 8, 391) on MNIST
        h = noise(F.relu(self.conv2(h)))  # (N, 16, 96)
        h = torch.cat((h.flatten(1), purities), 1)
        logits: Tensor = self.linear2(noise(F.relu(self.linear1(h))))
        return logits


def initialised(rays: int, generator: torch.Generator | None) -> BoundaryNet:
    """Return a network with torch's usual initial weights, U(-1, 1) / sqrt(inputs of a unit), from `generator`."""
    with torch.device("meta"):
        network = BoundaryNet(rays)
    network.to_empty(device="cpu")
    for layer in (network.conv1, network.conv2, network.linear1, network.linear2):
        bound = layer.weight[0].numel() ** -0.5
        for parameter in layer.parameters():
            parameter.data.uniform_(-bound, bound, generator=generator)
    return network


def dropout(h: Tensor, generator: torch.Generator | None) -> Tensor:
    """Return `h` with every element either doubled or 0, at even odds.

    Eight fair coins come from each random byte, drawn on the CPU: twenty times as fast as torch's dropout there,
    the same on every device, and the global random numbers stay untouched.
    """
    count = h.numel()
    drawn = torch.randint(256, (math.ceil(count / 8), 1), dtype=torch.uint8, generator=generator).to(h.device)
    coins = (drawn >> torch.arange(8, dtype=torch.uint8, device=h.device)) & 1
    return 2 * h * coins.flatten()[:count].view(h.shape)


def orders(count: int, steps: int, rows: int, generator: torch.Generator | None) -> Tensor:
    """Return the rows (steps, rows) of `count` to visit: one random permutation after another."""
    cycles = math.ceil(steps * rows / count)
    return torch.rand(cycles, count, generator=generator).argsort(1).flatten()[: steps * rows].view(steps, rows)


@contextlib.contextmanager
def exact() -> Iterator[None]:
    """Let cuDNN add in a fixed order, and in full float32."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    try:
        cudnn.benchmark, cudnn.deterministic = False, True
        with full_float32():
            yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


def train(
    network: BoundaryNet,
    sides: list[tuple[Tensor, Tensor]],
    visits: tuple[Tensor, Tensor],
    lr: float,
    generator: torch.Generator | None,
    progress: Callable[[int, int], None] | None,
) -> Tensor:
    """Train `network` in place on the rows visits[side][step] of each side; return the losses (steps,)."""
    steps, rows = visits[0].shape
    labels = torch.arange(2, device=visits[0].device).repeat_interleave(rows)
    losses = torch.empty(steps, device=labels.device)
    optimiser = torch.optim.Adam(network.parameters(), lr=lr)

    def noise(h: Tensor) -> Tensor:
        return dropout(h, generator)

    with torch.enable_grad(), exact():
        for step in range(steps):
            batch = [[part[order[step]] for part in side] for side, order in zip(sides, visits, strict=True)]
            distances, purities = (torch.cat(parts) for parts in zip(*batch, strict=True))  # benign first
            loss = F.cross_entropy(network(distances, purities, noise), labels)
            optimiser.zero_grad()
            loss.backward()
            optimiser.step()
            losses[step] = loss.detach()
            if progress is not None and ((step + 1) % max(steps // 100, 1) == 0 or step + 1 == steps):
                progress(step + 1, steps)
    return losses
