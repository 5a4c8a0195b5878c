"""The model as its users have it, before anybody thought of speed."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import nn


@contextlib.contextmanager
def plain(model: nn.Module) -> Iterator[nn.Module]:
    """Yield `model` in evaluation mode with weights in NCHW order that take gradients; restore everything on exit.

    That is what `model.eval()` gives after training, and what other libraries are handed. Their backward passes then
    compute the gradients of the weights as well.
    """
    before = [(parameter, parameter.data, parameter.requires_grad, parameter.grad) for parameter in model.parameters()]
    modes = [(module, module.training) for module in model.modules()]
    try:
        model.eval()
        for parameter, data, _, _ in before:
            parameter.data = data.clone(memory_format=torch.contiguous_format)
            parameter.requires_grad_(True)
        yield model
    finally:
        for parameter, data, takes_gradients, gradient in before:
            parameter.data, parameter.grad = data, gradient
            parameter.requires_grad_(takes_gradients)
        for module, training in modes:
            module.training = training
