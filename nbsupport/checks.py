"""Arguments checked once, at the public edge: each message says what was expected, what came, and what to do.

Torch is imported where tensors are checked, so that the command line answers at once.
"""

from __future__ import annotations

import contextlib
import difflib
import math
import operator
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor, nn

_FEW = 12  # options that are read at a glance


def number(value: float, *, name: str, low: float = 0.0, open_low: bool = False, high: float = math.inf) -> None:
    """Raise ValueError unless `value` is finite and in [low, high] (above `low` with `open_low`)."""
    try:
        finite = math.isfinite(value)
    except TypeError:
        raise ValueError(f"expected {name} as a number, got {value!r}") from None
    if not (finite and (value > low if open_low else value >= low) and value <= high):
        top = "" if math.isinf(high) else f" and at most {high:g}"
        raise ValueError(f"expected {name} {'above' if open_low else 'at least'} {low:g}{top}, got {value!r}")


def count(value: int, *, name: str, low: int = 1) -> None:
    """Raise ValueError unless `value` is a whole number of at least `low`."""
    try:
        whole = operator.index(value)  # takes NumPy's integers too
    except TypeError:
        whole = low - 1
    if isinstance(value, bool) or whole < low:
        raise ValueError(f"expected {name} as a whole number of at least {low}, got {value!r}")


def choice(value: str, allowed: Iterable[str], *, name: str) -> None:
    """Raise ValueError, with the closest match, unless `value` is one of `allowed`."""
    options = list(allowed)
    if value not in options:
        close = difflib.get_close_matches(str(value), options, n=2, cutoff=0.4)
        hint = f"; did you mean {' or '.join(map(repr, close))}?" if close else ""
        if len(options) > _FEW:  # first what helps, then the list
            raise ValueError(
                f"expected {name} to be one of {len(options)}, got {value!r}{hint}; these are {', '.join(options)}"
            )
        raise ValueError(f"expected {name} to be one of {', '.join(options)}, got {value!r}{hint}")


def images(x: Tensor, *, name: str = "x") -> None:
    """Raise ValueError unless `x` is a non-empty float32 tensor (N, C, H, W) in [0, 1] without NaN."""
    import torch

    if not isinstance(x, torch.Tensor):
        raise ValueError(
            f"expected {name} as a torch.Tensor, got {type(x).__name__}; convert with torch.as_tensor(...)"
        )
    if x.dtype != torch.float32:
        remedy = "divide by 255 after .float()" if x.dtype == torch.uint8 else f"convert with {name}.float()"
        raise ValueError(f"expected {name} as float32 in [0, 1], got {x.dtype}; {remedy}")
    if x.ndim != 4:
        raise ValueError(f"expected {name} of shape (N, C, H, W), got {tuple(x.shape)}; add the missing axes")
    if x.numel() == 0:
        raise ValueError(f"expected at least one image in {name}, got shape {tuple(x.shape)}")
    low, high = (value.item() for value in x.aminmax())
    if math.isnan(low) or math.isnan(high):
        raise ValueError(f"expected {name} without NaN; drop or repair the images with {name}.isnan().any()")
    if low < 0 or high > 1:
        raise ValueError(
            f"expected {name} in [0, 1], got values from {low:.4g} to {high:.4g}; "
            "scale the pixels to [0, 1] and put any normalisation into the model"
        )


def labels(y: Tensor, *, count: int, num_classes: int | None = None, name: str = "y") -> None:
    """Raise ValueError unless `y` is an int64 tensor of `count` labels in [0, num_classes)."""
    import torch

    if not isinstance(y, torch.Tensor) or y.dtype != torch.int64:
        got = y.dtype if isinstance(y, torch.Tensor) else type(y).__name__
        raise ValueError(f"expected {name} as an int64 tensor, got {got}; convert with torch.as_tensor({name}).long()")
    if y.shape != (count,):
        raise ValueError(f"expected {name} of shape ({count},), one label an image, got {tuple(y.shape)}")
    low, high = int(y.min()), int(y.max())
    if low < 0 or (num_classes is not None and high >= num_classes):
        top = "" if num_classes is None else f" to {num_classes - 1}"
        raise ValueError(f"expected {name} from 0{top}, got labels from {low} to {high}; check the model's classes")


def module(model: object) -> None:
    """Raise ValueError unless `model` is a torch module, and not its class."""
    from torch import nn

    if not isinstance(model, nn.Module):
        got = f"the class {model.__name__}; build it first" if isinstance(model, type) else type(model).__name__
        raise ValueError(f"expected a model as a torch.nn.Module, got {got}")


@contextlib.contextmanager
def forward_pass(model: nn.Module, in_shape: tuple[int, ...]) -> Iterator[None]:
    """Raise torch's refusal of images (C, H, W) inside as a ValueError that says what was expected of `model`."""
    import torch

    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except RuntimeError as error:
        weights = (tensor for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point())
        other = next((tensor.dtype for tensor in weights if tensor.dtype != torch.float32), None)
        if other is not None:
            raise ValueError(f"expected a model with float32 weights, got {other}; call model.float()") from error
        shape = ", ".join(map(str, in_shape))
        raise ValueError(f"expected a model that takes images of shape ({shape}), got: {error}") from error


def logits(z: Tensor, *, count: int) -> None:
    """Raise ValueError unless `z` is a finite floating tensor (count, L) with L >= 2."""
    logits_shape(z, count=count)
    finite_logits(int((~z.isfinite()).sum()))


def logits_shape(z: Tensor, *, count: int) -> None:
    """Raise ValueError unless `z` is a tensor (count, L) with L >= 2, whatever its values."""
    from torch import Tensor

    if not isinstance(z, Tensor) or z.ndim != 2 or z.shape[0] != count or z.shape[1] < 2:
        got = tuple(z.shape) if isinstance(z, Tensor) else type(z).__name__
        raise ValueError(
            f"expected logits of shape ({count}, classes) from the model, got {got}; return model(x) -> (N, L)"
        )


def finite_logits(broken: int) -> None:
    """Raise ValueError unless `broken`, the number of logits that are NaN or infinite, is 0."""
    if broken:
        raise ValueError(
            f"expected finite logits from the model, got {broken} NaN or infinite values; "
            "check the model's weights and its normalisation"
        )


def finite_gradients(broken: int) -> None:
    """Raise ValueError unless `broken`, the number of gradients of an image that are NaN or infinite, is 0."""
    if broken:
        raise ValueError(
            f"expected finite gradients from the model, got NaN or infinite values in {broken} backward passes of an "
            "image; look for a root, logarithm, norm or division at 0, also in a branch that torch.where discards, "
            "and clamp what goes into it"
        )


def differentiable(z: Tensor) -> None:
    """Raise ValueError unless the logits `z`, computed with gradients enabled, lead back to the images."""
    if not z.requires_grad:
        raise ValueError(
            "expected logits with a gradient to the images, got none; remove torch.no_grad, .detach() and changes to "
            "integers or NumPy from the model's forward, and attack outside torch.inference_mode"
        )


def not_probabilities(z: Tensor) -> None:
    """Raise ValueError if the rows of `z` (N, L) look like probabilities instead of logits.

    They do when every row lies in [0, 1], sums to 1 within 1e-4 and has an entry strictly between .001 and .999.
    """
    inside = ((z >= 0) & (z <= 1)).all(1)
    sums = (z.sum(1) - 1).abs() <= 1e-4
    spread = ((z > 0.001) & (z < 0.999)).any(1)
    if bool((inside & sums & spread).all()):
        raise ValueError("expected logits, got rows that are probabilities; return the layer before the softmax")
