"""What every attack starts from: checked images and labels, and what the model says of them before."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from nbsupport import checks
from nbsupport.runtime import device_of, laid_out, rows_per_batch


@dataclass(frozen=True)
class Problem:
    """Images to attack, on the model's device, with what the model says of them before the attack."""

    model: nn.Module
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
        x, y = x.detach().to(device), y.to(device)
        batches = x.split(rows_per_batch(model, tuple(x.shape[1:]), device))
        with torch.no_grad():
            outputs = [model(laid_out(model, batch)) for batch in batches]
        for batch, output in zip(batches, outputs, strict=True):
            checks.logits(output, count=len(batch))
        logits = torch.cat(outputs)
        checks.not_probabilities(logits)
        checks.labels(y, count=len(x), num_classes=logits.shape[1])
        if targets is None:
            return cls(model, x, y, False, logits.argmax(1) == y)
        checks.labels(targets, count=len(x), num_classes=logits.shape[1], name="targets")
        targets = targets.to(device)
        return cls(model, x, targets, True, logits.argmax(1) != targets)

    def logits(self, x: Tensor) -> Tensor:
        """Return the model's logits (R, L) of a batch (R, C, H, W)."""
        z: Tensor = self.model(laid_out(self.model, x))
        return z.float()

    def rows(self, views: int = 1) -> int:
        """Return how many images share a batch when each brings `views` rows."""
        return max(1, rows_per_batch(self.model, tuple(self.x.shape[1:]), self.x.device) // views)
