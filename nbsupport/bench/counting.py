"""A model that counts the images that pass through it, forward and backward."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor, nn

Tick = Callable[[int], None]  # takes the passes so far


class Counting(nn.Module):
    """The model itself, counting; its batch size and its memory format stay.

    Parameters
    ----------
    model : Module
        Maps images (N, C, H, W) to logits.
    tick : callable, optional
        Called after every forward pass with the passes of images so far, forward and backward.
    """

    def __init__(self, model: nn.Module, tick: Tick | None = None) -> None:
        super().__init__()
        self.model, self.tick = model, tick
        self.forwards = self.backwards = 0
        self.batch_rows = getattr(model, "batch_rows", {})
        self.channels_last = getattr(model, "channels_last", False)

    @property
    def passes(self) -> int:
        """Images that passed, forward and backward."""
        return self.forwards + self.backwards

    def forward(self, x: Tensor) -> Tensor:
        """Map (N, C, H, W) to logits (N, L)."""
        z: Tensor = self.model(x)
        self.forwards += len(x)
        if z.requires_grad:
            z.register_hook(self._backward)
        if self.tick is not None:
            self.tick(self.passes)
        return z

    def _backward(self, gradient: Tensor) -> None:
        self.backwards += len(gradient)
