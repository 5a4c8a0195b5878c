"""What every attack starts from: checked images and labels, and what the model says of them before."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport import checks
from nbsupport.runtime import device_of, rows_per_batch


@dataclass(frozen=True)
class Problem:
    """Images to attack, on the model's device, with what the model says of them before the attack."""

    model: nn.Module
    layout: torch.memory_format  # in which the model takes its batches
    x: Tensor  # (N, C, H, W)
    label: Tensor  # (N,): the true label or, when targeted, the target
    targeted: bool
    correct: Tensor  # (N,) bool

    @classmethod
    def of(cls, model: nn.Module, x: Tensor, y: Tensor, targets: Tensor | None) -> Problem:
        """Check the arguments, evaluate the clean images, and return the problem; `model` must be frozen."""
        checks.images(x)
        checks.labels(y, count=len(x))
        device = device_of(model, x)
        x, y = x.to(device), y.to(device)
        batches = x.split(rows_per_batch(model, tuple(x.shape[1:]), device))
        layout, outputs = _evaluate(model, batches)
        for batch, output in zip(batches, outputs, strict=True):
            checks.logits(output, count=len(batch))
        logits = torch.cat(outputs)
        checks.not_probabilities(logits)
        checks.labels(y, count=len(x), num_classes=logits.shape[1])
        if targets is None:
            return cls(model, layout, x, y, False, logits.argmax(1) == y)
        checks.labels(targets, count=len(x), num_classes=logits.shape[1], name="targets")
        targets = targets.to(device)
        return cls(model, layout, x, targets, True, logits.argmax(1) != targets)

    def logits(self, x: Tensor) -> Tensor:
        """Return the model's logits (R, L) of a batch (R, C, H, W)."""
        z: Tensor = self.model(x.contiguous(memory_format=self.layout))
        return z.float()

    def rows(self, views: int = 1) -> int:
        """Return how many images share a batch when each brings `views` rows."""
        return max(1, rows_per_batch(self.model, tuple(self.x.shape[1:]), self.x.device) // views)


@torch.no_grad()
def _evaluate(model: nn.Module, batches: Sequence[Tensor]) -> tuple[torch.memory_format, list[Tensor]]:
    """Return the memory format in which `model` takes images, channels-last if it can, and its outputs."""
    try:
        return torch.channels_last, [model(batch.contiguous(memory_format=torch.channels_last)) for batch in batches]
    except RuntimeError:  # a model that calls .view on what it is given wants NCHW memory
        return torch.contiguous_format, [model(batch.contiguous()) for batch in batches]
