"""The one loop that times: a case is called and its passes are counted. Beside it, what a machine gives."""

import contextlib
import copy
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor, nn

from nbsupport import attacks, presets, runtime
from nbsupport.runner.progress import duration

Tick = Callable[[int], None]  # takes the units done so far
SIZE = 3072  # of the matrices: large enough to fill a GPU, 0.6 s on one core
SLOTS, STEPS = 64, 5  # of the attack whose memory is measured
_WARM_UP_IMAGES = 8  # on a CPU; on a GPU, where it costs nothing, all
# glibc hands freed blocks back at once, so that the peak is what was held, not what was kept for the next call: left to
# itself it kept 13 to 20 MB more after many calls, whatever the number of images.
_NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


class Narrator:
    """Tells `say` what comes, and at most every `every` seconds how far it is."""

    def __init__(self, say: Callable[[str], None], *, every: float = 5.0) -> None:
        self.say, self._every = say, every
        self.notes: list[str] = []

    def note(self, text: str) -> None:
        """Say `text` and keep it for the results."""
        self.notes.append(text)
        self.say(f"  {text}")

    def coming(self, what: str, seconds: float) -> None:
        """Say that `what` comes and takes `seconds` at most, as far as one can tell from the model's pace."""
        self.say(f"  {what}: up to about {duration(max(seconds, 0.1))}")

    def ticker(self, what: str, total: int, unit: str) -> Tick:
        """Return what is to be called with the units done of the `total`, from now on."""
        begun = told = time.monotonic()

        def tick(done: int) -> None:
            nonlocal told
            now = time.monotonic()
            if now - told >= self._every:
                told, rate = now, done / (now - begun)
                left = duration(max(total - done, 0) / rate)
                self.say(f"    {what:<28} {done}/{total} {unit}, {rate:.3g}/s, {left} left")

        return tick


@dataclass(frozen=True, eq=False)
class Subject:
    """What is measured: a model, images that it classifies correctly, and the settings of their data set.

    Attributes
    ----------
    name : str
        Such as "mnist_cnn on mnist".
    model : Module
        In evaluation mode.
    x, y : Tensor (N, C, H, W) float32 in [0, 1], (N,) int64
        On the model's device.
    settings : Settings
        The preset `standard`: budgets, radius, magnitudes, directions.
    flops : float
        Of one forward pass of one image; a backward pass to the pixels costs the same. As a share of the machine's
        float32 matrix rate, passes in mixed precision may exceed 1.
    """

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    settings: presets.Settings
    flops: float

    def first(self, n: int) -> Self:
        """Return the subject with its first `n` images (all, where there are fewer)."""
        return replace(self, x=self.x[:n], y=self.y[:n])


@dataclass(frozen=True)
class Case:
    """One thing that is timed, a row of a table.

    Attributes
    ----------
    what : str
        Its name.
    call : callable
        `call(subject, steps, **options)` does it with the model and the images of `subject`.
    steps : int
        Of an attack, magnitudes of a grid, or points of a vote.
    passes : int
        Forward and backward passes of one image that it takes at most.
    options : mapping
        What the kernel is told; its `precision`, where there is one, tells by which pace its duration is estimated.
    plain : bool
        It is handed the model as its users have it; see `plain`.
    """

    what: str
    call: Callable[..., Any]
    steps: int
    passes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False


@dataclass(frozen=True, eq=False)
class Measured:
    """What the call of `case` returned, its seconds, the images that passed forward and backward, the peak in bytes."""

    case: Case
    result: Any
    seconds: float
    forwards: int
    backwards: int
    peak: int

    @property
    def passes_per_s(self) -> float:
        """Forward and backward passes of one image, a second."""
        return (self.forwards + self.backwards) / self.seconds


def measure(case: Case, subject: Subject, tick: Tick = lambda done: None, *, seconds: float = 0.0) -> Measured:
    """Return `case` measured after a warm-up of two steps, called until `seconds` have passed.

    `tick` hears after every forward pass how many images have passed so far, forward and backward.
    """
    forwards = backwards = 0

    def count_forward(module: nn.Module, given: object, logits: Tensor) -> None:
        nonlocal forwards
        forwards += len(logits)
        if logits.requires_grad:
            logits.register_hook(count_backward)
        tick(forwards + backwards)

    def count_backward(gradient: Tensor) -> None:
        nonlocal backwards
        backwards += len(gradient)

    device, spent = subject.x.device, 0.0
    if case.plain:
        subject = replace(subject, model=plain(subject.model))
    with contextlib.nullcontext() if case.plain else runtime.frozen(subject.model):
        warm = subject if device.type == "cuda" else subject.first(_WARM_UP_IMAGES)
        case.call(warm, min(case.steps, 2), **case.options)
        reset_peak(device)
        hook = subject.model.register_forward_hook(count_forward)
        try:
            while not spent or spent < seconds:
                result, last = timed(lambda: case.call(subject, case.steps, **case.options), device)
                spent += last
        finally:
            hook.remove()
    return Measured(case, result, spent, forwards, backwards, peak_bytes(device))


def batch(subject: Subject, precision: runtime.Precision, *, backward: bool, rows: int | None = None) -> Case:
    """Return the model alone, on one batch of the subject's images, repeated where too few; its result is their number.

    With `backward` the batch goes forward and back to the pixels, as in a step of PGD; else forward only. `rows` is
    the size of the batch: at most, and where None, that of a full one.
    """
    full = runtime.rows_per_batch(subject.model, tuple(subject.x.shape[1:]), subject.x.device)
    index = torch.arange(min(rows or full, full), device=subject.x.device) % len(subject.x)
    x, y = subject.x[index].requires_grad_(backward), subject.y[index]

    def call(subject: Subject, steps: int, precision: runtime.Precision) -> int:
        with torch.set_grad_enabled(backward), runtime.reduced_precision(precision, x.device):
            logits = subject.model(runtime.laid_out(subject.model, x))
        if backward:
            torch.autograd.grad(logits.gather(1, y[:, None]).sum(), x)
        return len(x)

    way = "forward and backward" if backward else "forward"
    return Case(f"{way}, {precision}", call, 1, 2 if backward else 1, {"precision": precision})


def plain(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in evaluation mode, its weights in NCHW order and taking gradients.

    That is what `model.eval()` gives after training, and what other libraries are handed. Their backward passes then
    compute the gradients of the weights as well.
    """
    copied = copy.deepcopy(model)
    copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return copied.eval().requires_grad_()


# What a machine gives


def described(device: torch.device) -> dict[str, Any]:
    """Return what a timing must be read with: the device and its name, the threads, the versions."""
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    else:  # Python's own `platform` knows none on Linux
        name = _proc("cpuinfo", "model name") or platform.processor() or platform.machine()
    versions = {"torch": torch.__version__, "python": platform.python_version()}
    return {"device": device.type, "device_name": name, "threads": torch.get_num_threads(), **versions}


def _proc(file: str, name: str) -> str:
    """Return what a file below /proc says of `name`, nothing where the system has no such file."""
    path = Path("/proc", file)
    lines = path.read_text().splitlines() if path.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(name)), "")


def matrix_rate(device: torch.device) -> float:
    """Return the machine's float32 rate in FLOP/s: the median of five products of 3072 x 3072 matrices."""
    a, b = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    with runtime.full_float32():
        seconds = [timed(lambda: a @ b, device)[1] for _ in range(6)]
    return 2 * SIZE**3 / statistics.median(seconds[1:])  # the first warms up


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Return what `call` returns, and its seconds, the device's work included."""
    wait = torch.get_device_module(device).synchronize
    wait(device)
    start = time.perf_counter()
    result = call()
    wait(device)
    return result, time.perf_counter() - start


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of the peak; where the system offers none (macOS), the process's own goes on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # macOS has no such file, and a container may forbid it
            Path("/proc/self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Return the largest memory since `reset_peak`: allocated on a GPU, else of the process.

    Linux keeps the process's own in VmHWM. `ru_maxrss` serves elsewhere: on Linux it can be neither reset nor trusted
    in a child, which inherits it from the process that started it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if peak := _proc("self/status", "VmHWM:"):
        return int(peak.split()[0]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_growth(model: nn.Module, x: Tensor, y: Tensor, counts: tuple[int, ...]) -> list[int]:
    """Return by how many bytes the peak has grown after OPTBRITTLE ddn attacked each of `counts` images in 64 slots.

    The images are repeated where there are too few. On a CPU a fresh process measures: in this one, memory that was
    freed before would hide the growth.
    """
    model = copy.deepcopy(model)
    vars(model)["batch_rows"] = {"cpu": SLOTS, "cuda": SLOTS}
    if x.device.type == "cuda":
        return _growth(model, x, y, counts)
    heeded = mock.patch.dict(os.environ, {**_NOTHING_KEPT, **os.environ})  # by a process that starts with them
    threads = (torch.get_num_threads(),)
    with heeded, ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, threads) as pool:
        return pool.submit(_growth, model, x, y, counts).result()


def _growth(model: nn.Module, x: Tensor, y: Tensor, counts: tuple[int, ...]) -> list[int]:
    reset_peak(x.device)
    attacks.ddn_l2(model, x[:1], y[:1], steps=STEPS)  # loads what the first call loads
    before = peak_bytes(x.device)
    grown = []
    for count in counts:
        index = torch.arange(count, device=x.device) % len(x)
        attacks.ddn_l2(model, x[index], y[index], steps=STEPS)
        grown.append(peak_bytes(x.device) - before)
    return grown
