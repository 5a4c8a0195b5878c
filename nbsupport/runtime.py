"""Where and how a model is evaluated: device, random generators, batch sizes, frozen models."""

import contextlib
import hashlib
import itertools
import math
import warnings
from collections.abc import Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nbsupport import checks

Precision = Literal["float32", "mixed"]  # mixed: reduced precision, every decision confirmed in float32
PRECISIONS = get_args(Precision)
# What a CPU says of itself where oneDNN multiplies in bfloat16 faster than in float32; the last is an ARM's.
_FAST_BFLOAT16 = ("avx512_bf16", "amx_bf16", "bf16")


def best_device() -> torch.device:
    """Return the CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def device_of(model: nn.Module, x: Tensor) -> torch.device:
    """Return the device of `model`; for a module without parameters or buffers, the device of `x`.

    Raises ValueError for what is not a module.
    """
    checks.module(model)
    return next(itertools.chain(model.parameters(), model.buffers(), [x])).device


def seeded(seed: int, *purpose: object) -> torch.Generator:
    """Return a CPU generator that depends on `seed` and on what it is for.

    Two purposes never share a stream, so adding a draw to one stage leaves all others as they were.
    """
    digest = hashlib.sha256(repr((seed, *map(str, purpose))).encode()).digest()
    return torch.Generator().manual_seed(int.from_bytes(digest[:7], "big"))


@contextlib.contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 convolutions and products in full: CUDA's TF32 keeps ten bits of the mantissa."""
    convolutions, products = torch.backends.cudnn.conv, torch.backends.cuda.matmul  # type: ignore[attr-defined]
    before = convolutions.fp32_precision, products.fp32_precision
    try:
        convolutions.fp32_precision = products.fp32_precision = "ieee"
        yield
    finally:
        convolutions.fp32_precision, products.fp32_precision = before


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Yield `model` in evaluation mode with constant parameters, in full float32; restore everything on exit.

    Raises ValueError for what is not a module.
    """
    checks.module(model)
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        with full_float32():
            yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


def rows_per_batch(model: nn.Module, in_shape: tuple[int, ...], device: torch.device) -> int:
    """Return the number of images in one forward pass.

    It depends on the model, the image size and the kind of device alone, so that every run of the same
    configuration rounds alike. A model may state its own in `model.batch_rows` (a dict by device type).
    The rule of thumb for all others keeps one layer's activations within a CPU's cache (batches of 64-256
    were the fastest for `mnist_cnn` on two cores) and fills a GPU.
    """
    stated: dict[str, int] = getattr(model, "batch_rows", {})
    if device.type in stated:
        return stated[device.type]
    budget = 128 * 784 if device.type == "cpu" else 8192 * 784
    rows = budget / math.prod(in_shape)
    return int(2 ** round(math.log2(min(max(rows, 16), 512 if device.type == "cpu" else 16384))))


def laid_out(model: nn.Module, x: Tensor) -> Tensor:
    """Return images `x` (N, C, H, W) in the memory format that `model` takes.

    Channels-last where the model says so with an attribute `channels_last = True`: it doubles the rate of small CNNs
    on a CPU, but a model that calls `.view` on what a convolution gave would fail.
    """
    return as_images(model, as_rows(model, x), tuple(x.shape[1:]))


def as_rows(model: nn.Module, x: Tensor) -> Tensor:
    """Return images `x` (N, C, H, W) as contiguous rows (N, C*H*W) in the order of memory that `model` takes.

    Rows may be gathered, mixed and clipped, and still become images in that order (`as_images`) without a copy.
    """
    ordered = x.permute(0, 2, 3, 1) if getattr(model, "channels_last", False) else x
    return ordered.flatten(1).contiguous()


def as_images(model: nn.Module, rows: Tensor, in_shape: tuple[int, ...]) -> Tensor:
    """Return rows (N, C*H*W) of `as_rows` as images (N, C, H, W) that share their memory."""
    c, h, w = in_shape
    if not getattr(model, "channels_last", False):
        return rows.view(-1, c, h, w)
    # With one channel both formats are the same in memory; only the strides tell the kernels which one is meant.
    return rows.view(-1, h, w, c).permute(0, 3, 1, 2)


def fast_bfloat16(device: torch.device) -> bool:
    """Return whether `device` says that it computes in bfloat16 itself, and so faster than in float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    able = torch.cpu.get_capabilities() if device.type == "cpu" and torch.backends.mkldnn.is_available() else {}
    return any(able.get(name, False) for name in _FAST_BFLOAT16)


def usable(precision: str, device: torch.device) -> Precision:
    """Return `precision`, but "float32", with a warning, where `device` has no fast bfloat16.

    Raises ValueError for an unknown one.
    """
    checks.choice(precision, PRECISIONS, name="precision")
    if precision == "float32":
        return "float32"
    if fast_bfloat16(device):
        return "mixed"
    warnings.warn(
        f"this {device.type} has no fast bfloat16: precision 'mixed' would be slower, float32 is used", stacklevel=3
    )
    return "float32"


def reduced_precision(precision: Precision, device: torch.device) -> contextlib.AbstractContextManager[object]:
    """Return a context in which networks run in bfloat16 when `precision` is "mixed", and as they are otherwise."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "mixed")


def logits(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits (N, L) that `model` gives images `x` (N, C, H, W), on the model's device.

    Raises ValueError for what is not a module, and for one that does not take such images.
    """
    in_shape = tuple(x.shape[1:])
    with frozen(model), torch.no_grad(), checks.forward_pass(model, in_shape):
        device = device_of(model, x)
        batches = x.split(rows_per_batch(model, in_shape, device))
        return torch.cat([model(laid_out(model, batch.to(device))) for batch in batches])


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Return the classes (N,) int64 that `model` gives images `x` (N, C, H, W), on the model's device."""
    return logits(model, x).argmax(1)
