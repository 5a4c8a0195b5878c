"""Where and how a model is evaluated: device, random generators, batch sizes, frozen models."""

import contextlib
import functools
import hashlib
import itertools
import math
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from nbsupport import checks

Precision = Literal["float32", "mixed"]  # mixed: reduced precision, every decision confirmed in float32
PRECISIONS = get_args(Precision)
_ACTIVATIONS = 8 * 2**30  # bytes on a GPU: a card of 16 GB holds them and what a backward pass adds
_KEPT_BYTES: weakref.WeakKeyDictionary[nn.Module, dict[tuple[int, ...], int]] = weakref.WeakKeyDictionary()
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


def _overlapping(
    change: Callable[[], contextlib.AbstractContextManager[None]],
) -> Callable[[], contextlib.AbstractContextManager[None]]:
    """Return the context `change`, which sets something global, such that several threads may be in it at once.

    The first to enter makes the change and the last to leave takes it back, in whatever order they leave.
    """
    lock, undo, inside = threading.Lock(), contextlib.ExitStack(), 0

    @functools.wraps(change)
    @contextlib.contextmanager
    def context() -> Iterator[None]:
        nonlocal inside
        with lock:
            if inside == 0:
                undo.enter_context(change())
            inside += 1
        try:
            yield
        finally:
            with lock:
                inside -= 1
                if inside == 0:
                    undo.close()

    return context


@_overlapping
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


@_overlapping
@contextlib.contextmanager
def repeatable() -> Iterator[None]:
    """Let cuDNN add in a fixed order, by an algorithm that does not depend on how fast others were."""
    cudnn = torch.backends.cudnn
    before = cudnn.benchmark, cudnn.deterministic
    try:
        cudnn.benchmark, cudnn.deterministic = False, True
        yield
    finally:
        cudnn.benchmark, cudnn.deterministic = before


@contextlib.contextmanager
def constant(model: nn.Module) -> Iterator[nn.Module]:
    """Yield `model` in evaluation mode with constant parameters; restore everything on exit.

    Raises ValueError for what is not a module.
    """
    checks.module(model)
    modes = [(module, module.training) for module in model.modules()]
    flags = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    try:
        model.eval()
        for parameter, _ in flags:
            parameter.requires_grad_(False)
        yield model
    finally:
        for module, training in modes:
            module.training = training
        for parameter, requires_grad in flags:
            parameter.requires_grad_(requires_grad)


@contextlib.contextmanager
def frozen(model: nn.Module) -> Iterator[nn.Module]:
    """Yield `model` as `constant` does, in full float32, so that results repeat."""
    with constant(model), full_float32(), repeatable():
        yield model


def rows_per_batch(model: nn.Module, in_shape: tuple[int, ...], device: torch.device) -> int:
    """Return the number of images in one forward pass.

    It depends on the model, the image size and the kind of device alone, so that every run of the same
    configuration rounds alike. A model may state its own in `model.batch_rows` (a dict by device type).
    The rule of thumb for all others keeps one layer's activations within a CPU's cache (on two cores batches of 64-256
    were the fastest for `mnist_cnn`; on grey digits a probe took .6 and .9 of the time with 1024 instead of 512, on
    digits in colour, which get 512, 1.4) and fills a GPU, with a backward pass in 8 GiB of its memory.
    """
    stated: dict[str, int] = getattr(model, "batch_rows", {})
    if device.type in stated:
        return stated[device.type]
    if device.type == "cpu":
        return _power_of_two(128 * 784 / math.prod(in_shape), 16, 1024)
    rows = _power_of_two(8192 * 784 / math.prod(in_shape), 16, 16384)
    fitting = max(1, _ACTIVATIONS // max(1, kept_bytes(model, in_shape)))
    return min(rows, 1 << (fitting.bit_length() - 1))


def _power_of_two(rows: float, low: int, high: int) -> int:
    return 1 << round(math.log2(min(max(rows, low), high)))


def kept_bytes(model: nn.Module, in_shape: tuple[int, ...]) -> int:
    """Return the bytes that one image (C, H, W) = `in_shape` leaves in memory for a backward pass to its pixels.

    They are counted in one pass of the model, once for each model and image size: 0.3 MB for `mnist_cnn`, 1.5 MB for
    `resnet20`, 34 MB for `wrn_34_10`.
    """
    sizes = _KEPT_BYTES.setdefault(model, {})
    if in_shape not in sizes:
        x = torch.full((1, *in_shape), 0.5)
        x = x.to(device_of(model, x)).requires_grad_()
        own = {_memory(tensor) for tensor in itertools.chain(model.parameters(), model.buffers())}
        kept: dict[int, Tensor] = {}

        def keep(tensor: Tensor) -> Tensor:
            kept[_memory(tensor)] = tensor
            return tensor

        keeping = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with frozen(model), checks.forward_pass(model, in_shape), torch.enable_grad(), keeping:
            model(laid_out(model, x))
        sizes[in_shape] = sum(tensor.untyped_storage().nbytes() for at, tensor in kept.items() if at not in own)
    return sizes[in_shape]


def _memory(tensor: Tensor) -> int:
    """Return what tells apart the memory of tensors that live at the same time."""
    return int(tensor.untyped_storage()._cdata)


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


def forward(model: nn.Module, x: Tensor) -> Tensor:
    """Return the logits (N, L) that `model`, frozen or `constant`, gives one batch `x` (N, C, H, W) on its device.

    On a GPU the batch is filled up to the next of few sizes, 2^k or 3 * 2^k, with images that are there already:
    cuDNN plans each convolution anew for every size of a batch, and a pool that runs dry, or points that are still
    undecided, would come in hundreds.

    Raises ValueError for logits of wrong shape.
    """
    rows = len(x)
    missing = 0 if x.device.type == "cpu" else _few_sizes(rows) - rows
    if missing:
        x = torch.cat((x, x[:missing]))
    z: Tensor = model(laid_out(model, x))
    checks.logits_shape(z, count=len(x))
    return z[:rows] if missing else z


def _few_sizes(rows: int) -> int:
    """Return the least of 1, 2, 3, 4, 6, 8, 12, 16, 24, ... that is not below `rows`."""
    power = 1 << max(0, rows - 1).bit_length()
    return power * 3 // 4 if power >= 4 and rows <= power * 3 // 4 else power


def sent(values: Tensor, device: torch.device) -> Tensor:
    """Return `values`, on the CPU, on `device`; the host does not wait for what the device has still to do."""
    pinned = values.pin_memory() if device.type == "cuda" else values
    return pinned.to(device, non_blocking=True)


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
        return torch.cat([forward(model, batch.to(device)) for batch in batches])


def predict(model: nn.Module, x: Tensor) -> Tensor:
    """Return the classes (N,) int64 that `model` gives images `x` (N, C, H, W), on the model's device."""
    return logits(model, x).argmax(1)
