"""What is measured on, the one loop that times and counts passes, and what a machine gives."""

import contextlib
import copy
import inspect
import math
import os
import platform
import sys
import time
import warnings
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any, Self
from unittest import mock

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from nbsupport import attacks, boundary, data, models, presets, runtime, suite, train
from nbsupport.runner.report import duration

Tick = Callable[[int], None]  # takes the units done so far
EPOCHS, TRAIN_N = {"digits": 8, "mnist": 2}, {"digits": 1297, "mnist": 20000}  # of the model that is trained
PACE_SECONDS = 1.0  # for which the model alone is called at least
SIZE = 3072  # of the matrices: large enough to fill a GPU, 0.6 s on one core
SLOTS, STEPS = 64, 5  # of the attack whose memory is measured
BY_SHAPE = {(1, 8, 8): "digits", (1, 28, 28): "mnist", (3, 32, 32): "cifar10"}
_VALIDATION = 500  # test images that the better epoch is chosen by
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


def obtain(images: int, model: Path | None, narrator: Narrator) -> Subject:
    """Return the subject with at most `images` images.

    Parameters
    ----------
    images : int
        Correctly classified test images wanted.
    model : Path, optional
        A file of `models.save`; the data set is the one of its image size. None: a model is trained for some
        seconds, on MNIST where $NBSUPPORT_DATA has it, else on the embedded digits.
    narrator : Narrator
        Told what is trained, and for how long.

    Raises
    ------
    ValueError
        For a model of another image size, or one that classifies no image correctly.
    FileNotFoundError
        Where `model`, or the data set that it needs, is not there.
    """
    device = runtime.best_device()
    if model is None:
        s = presets.settings("mnist" if _mnist_is_here() else "digits")
        net = _trained(s, narrator)
    else:
        net = models.load(model).to(device)
        shape = vars(net)["spec"].in_shape
        if shape not in BY_SHAPE:
            known = ", ".join(f"{'x'.join(map(str, size))} ({name})" for size, name in BY_SHAPE.items())
            raise ValueError(f"expected a model for images of {known}, got {'x'.join(map(str, shape))} in {model}")
        s = presets.settings(BY_SHAPE[shape])
    test = data.load(s.dataset, train=False, limit=max(_VALIDATION, 2 * images))
    keep = (runtime.predict(net, test.x).cpu() == test.y).nonzero().squeeze(1)[:images]
    if not len(keep):
        raise ValueError(f"expected a model that classifies images of {s.dataset}, got one that is never right")
    x, y = test.x[keep].to(device), test.y[keep].to(device)
    return Subject(f"{vars(net)['spec'].name} on {s.dataset}", net, x, y, s, forward_flops(net, x[:1]))


def forward_flops(model: nn.Module, x: Tensor) -> float:
    """Return the FLOP of convolutions and matrix products in one forward pass of `x` (1, C, H, W)."""
    with FlopCounterMode(display=False) as counter, runtime.frozen(model), torch.no_grad():
        model(runtime.laid_out(model, x))
    return float(counter.get_total_flops())


def _mnist_is_here() -> bool:
    """Return whether $NBSUPPORT_DATA names a folder with MNIST: a benchmark downloads nothing unasked."""
    named = os.environ.get("NBSUPPORT_DATA")
    return named is not None and (Path(named).expanduser() / "MNIST" / "raw").is_dir()


def _trained(s: presets.Settings, narrator: Narrator) -> nn.Module:
    """Return a normally trained model of a data set in `EPOCHS`."""
    fitted = data.load(s.dataset, train=True, limit=TRAIN_N[s.dataset])
    validation = data.load(s.dataset, train=False, limit=_VALIDATION)
    model, epochs = suite.new_model(s, fitted, "normal"), EPOCHS[s.dataset]
    batches = epochs * math.ceil(len(fitted) / s.batch_size)
    narrator.say(f"{s.model} is trained on {len(fitted):,} images of {s.dataset}, {epochs} epochs, {batches} batches")
    tick = narrator.ticker("training", batches, "batches")
    recipe: dict[str, Any] = {"batch_size": s.batch_size, "lr": s.lr, "weight_decay": s.weight_decay}
    recipe |= {"generator": runtime.seeded(0, "bench"), "progress": lambda done, total: tick(done)}
    train.fit(model, fitted, epochs=epochs, validation=validation, **recipe)
    return model.eval()


# The one loop


@dataclass(frozen=True)
class Case:
    """One thing that is timed, a row of a table.

    Attributes
    ----------
    what : str
        Its name.
    call : callable
        `call(model, x, y, steps=steps, **options)` does it, as the attacks of this package; one that has a `generator`
        is given the same one every time.
    steps : int
        Of an attack, magnitudes of a grid, or points of a vote.
    passes : int
        Forward and backward passes of one image that it takes at most.
    options : mapping
        What the kernel is told; its `precision`, where there is one, tells by which pace its duration is estimated.
    plain : bool
        It is handed the model as its users have it; see `plain`.
    seconds : float
        It is called until that many have passed, at least once.
    """

    what: str
    call: Callable[..., Any]
    steps: int
    passes: int
    options: Mapping[str, Any] = field(default_factory=dict)
    plain: bool = False
    seconds: float = 0.0


@dataclass(frozen=True, eq=False)
class Measured:
    """What the call of `case` returned, its seconds, the images that passed forward and backward, the peak in bytes.

    `waits` says how often the host waited for the device; None where it is a CPU.
    """

    case: Case
    result: Any
    seconds: float
    forwards: int
    backwards: int
    peak: int
    waits: int | None = None

    @property
    def passes_per_s(self) -> float:
        """Forward and backward passes of one image, a second."""
        return (self.forwards + self.backwards) / self.seconds


def measure(case: Case, subject: Subject, tick: Tick = lambda done: None) -> Measured:
    """Return `case` measured after a warm-up of two steps.

    `tick` hears after every forward pass how many images have passed so far, forward and backward.
    """
    passed: Counter[str] = Counter()
    device, drawing = subject.x.device, "generator" in inspect.signature(case.call).parameters

    def count(module: nn.Module, given: object, logits: Tensor) -> None:
        passed["forwards"] += len(logits)
        if logits.requires_grad:
            logits.register_hook(lambda gradient: passed.update(backwards=len(gradient)))
        tick(passed.total())

    def call(images: Subject, steps: int) -> Any:
        drawn = {"generator": runtime.seeded(0, "bench")} if drawing else {}
        return case.call(model, images.x, images.y, steps=steps, **case.options, **drawn)

    with contextlib.nullcontext(plain(subject.model)) if case.plain else runtime.frozen(subject.model) as model:
        call(subject if device.type == "cuda" else subject.first(_WARM_UP_IMAGES), min(case.steps, 2))
        reset_peak(device)
        result, spent, waits = None, 0.0, None
        with model.register_forward_hook(count):
            while not spent or spent < case.seconds:
                (result, waits), last = timed(lambda: counting_waits(lambda: call(subject, case.steps), device), device)
                spent += last
    return Measured(case, result, spent, passed["forwards"], passed["backwards"], peak_bytes(device), waits)


def batch(subject: Subject, precision: runtime.Precision, *, backward: bool, rows: int | None = None) -> Case:
    """Return the model alone, on one batch of the subject's images, repeated where too few; its result is their number.

    With `backward` the batch goes forward and back to the pixels, as in a step of PGD; else forward only. `rows` is
    the size of the batch: at most, and where None, that of a full one.
    """
    full = runtime.rows_per_batch(subject.model, tuple(subject.x.shape[1:]), subject.x.device)
    index = torch.arange(min(rows or full, full), device=subject.x.device) % len(subject.x)
    x, y = subject.x[index].requires_grad_(backward), subject.y[index]

    def call(model: nn.Module, *given: Tensor, steps: int, precision: runtime.Precision) -> int:
        with torch.set_grad_enabled(backward), runtime.reduced_precision(precision, x.device):
            logits = model(runtime.laid_out(model, x))
        if backward:
            torch.autograd.grad(logits.gather(1, y[:, None]).sum(), x)
        return len(x)

    way = "forward and backward" if backward else "forward"
    return Case(f"{way}, {precision}", call, 1, 1 + backward, {"precision": precision}, seconds=PACE_SECONDS)


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
    name = _proc("cpuinfo", "model name") or platform.processor() or platform.machine()  # `platform` has none on Linux
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
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
    return 2 * SIZE**3 / sorted(seconds[1:])[2]  # the first warms up


def timed(call: Callable[[], Any], device: torch.device) -> tuple[Any, float]:
    """Return what `call` returns, and its seconds, the device's work included."""
    wait = torch.get_device_module(device).synchronize
    wait(device)
    start = time.perf_counter()
    result = call()
    wait(device)
    return result, time.perf_counter() - start


def counting_waits(call: Callable[[], Any], device: torch.device) -> tuple[Any, int | None]:
    """Return what `call` returns, and how often it made the host wait for a GPU, as far as torch notices it."""
    if device.type != "cuda":
        return call(), None
    before = torch.cuda.get_sync_debug_mode()
    with warnings.catch_warnings(record=True, action="always") as told:
        torch.cuda.set_sync_debug_mode("warn")
        try:
            result = call()
        finally:
            torch.cuda.set_sync_debug_mode(before)
    return result, sum("called a synchronizing CUDA operation" in str(one.message) for one in told)


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of the peak; where the system offers none (macOS), the process's own goes on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
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
    if sys.platform == "win32":
        import psutil

        return int(psutil.Process().memory_info().peak_wset)
    import resource

    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)


def memory_growth(model: nn.Module, x: Tensor, y: Tensor, counts: tuple[int, ...]) -> list[int]:
    """Return by how many bytes the peak has grown after OPTBRITTLE ddn attacked each of `counts` images in 64 slots.

    The images are repeated where there are too few. On a CPU a fresh process measures: in this one, memory that was
    freed before would hide the growth.
    """
    model = copy.deepcopy(model)
    vars(model)["batch_rows"] = {"cpu": SLOTS, "cuda": SLOTS}
    grown: list[int] = _apart(x.device, _growth, model, x, y, counts)
    return grown


def probe_cost(
    model: nn.Module, in_shape: tuple[int, ...], images: int, rays: int, magnitudes: Sequence[float]
) -> dict[str, float]:
    """Return what drawing directions and probing random images along them takes, as columns of a table.

    Both with the growth of the peak of memory in MB, measured as by `memory_growth`, beside the size of what they
    return. More rays than an image has pixels are directions and their negations.
    """
    device = runtime.device_of(model, torch.empty(0))
    cost: dict[str, float] = _apart(device, _probe_cost, model, in_shape, images, rays, magnitudes)
    return cost


def _probe_cost(
    model: nn.Module, in_shape: tuple[int, ...], images: int, rays: int, magnitudes: Sequence[float]
) -> dict[str, float]:
    x = torch.rand(images, *in_shape, generator=runtime.seeded(0, "bench", "images"))
    dim, negate, host, device = x[0].numel(), rays > x[0].numel(), torch.device("cpu"), runtime.device_of(model, x)
    count, generator = rays // (1 + negate), runtime.seeded(0, "bench", "directions")
    # Once for a moment: it loads what the first call loads.
    boundary.probe(model, x[:1], boundary.directions(dim, 1, negate=False), magnitudes[:1])
    draw = partial(boundary.directions, dim, count, negate=negate, generator=generator)
    directions, draw_seconds, draw_growth = _grown(draw, host)
    probe = partial(boundary.probe, model, x, directions, magnitudes)
    profile, seconds, growth = _grown(probe, device)
    return {
        "images": images,
        "rays": rays,
        "draw_seconds": draw_seconds,
        "draw_growth_mb": draw_growth / 1e6,
        "directions_mb": directions.nbytes / 1e6,
        "seconds": seconds,
        "rays_per_s": images * rays / seconds,
        "growth_mb": growth / 1e6,
        "profile_mb": sum(tensor.nbytes for tensor in profile.tensors().values()) / 1e6,
    }


def _grown(call: Callable[[], Any], device: torch.device) -> tuple[Any, float, int]:
    """Return what `call` returns, its seconds, and by how many bytes the peak of memory grew."""
    reset_peak(device)
    before = peak_bytes(device)
    result, seconds = timed(call, device)
    return result, seconds, peak_bytes(device) - before


def _apart(device: torch.device, call: Callable[..., Any], *given: Any) -> Any:
    """Return `call(*given)`, on a CPU called by a fresh process with as many threads."""
    if device.type == "cuda":
        return call(*given)
    heeded = mock.patch.dict(os.environ, {**_NOTHING_KEPT, **os.environ})  # by a process that starts with them
    alike = torch.multiprocessing.get_context("spawn"), torch.set_num_threads, (torch.get_num_threads(),)
    with heeded, ProcessPoolExecutor(1, *alike) as pool:
        return pool.submit(call, *given).result()


def _growth(model: nn.Module, x: Tensor, y: Tensor, counts: tuple[int, ...]) -> list[int]:
    reset_peak(x.device)
    peaks = []
    for count in (1, *counts):  # one image first: it loads what the first call loads
        index = torch.arange(count, device=x.device) % len(x)
        attacks.ddn_l2(model, x[index], y[index], steps=STEPS)
        peaks.append(peak_bytes(x.device))
    return [peak - peaks[0] for peak in peaks[1:]]
