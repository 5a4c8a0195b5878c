"""The timed loops: the kernels against plain code, on the same model and images, beside the machine's own rate.

Every figure is taken in one process, since machines differ and drift: compare ratios, not seconds.
"""

from __future__ import annotations

import resource
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nbsupport import attacks, boundary, data, models, region, runtime, train

Row = dict[str, Any]
T = TypeVar("T")
BENCHES = ("attacks", "boundary", "region")


@dataclass(frozen=True)
class Subject:
    """What is measured: a normally trained model, and the first test images that it classifies correctly."""

    name: str
    model: nn.Module
    x: Tensor
    y: Tensor
    eps: float
    magnitudes: list[float]
    flops: float  # of one forward pass of one image


def run(what: str) -> list[Row]:
    """Return the rows of the benchmark `what`: "attacks", "boundary", "region" or "all".

    On MNIST and `mnist_cnn` where the data are at hand ($NBSUPPORT_DATA), else on the embedded digits.
    """
    subject = _subject()
    rate = matrix_rate(subject.x.device)
    benches = {"attacks": bench_attacks, "boundary": bench_boundary, "region": bench_region}
    rows = []
    for name in BENCHES if what == "all" else (what,):
        for row in benches[name](subject):
            done = row["forwards_per_s"] + 2 * row.get("backwards_per_s", 0.0)
            share = done * subject.flops / rate
            rows.append({"bench": name, "subject": subject.name, **row, "matrix_share": share, "peak_gb": _peak_gb()})
    return rows


def matrix_rate(device: torch.device) -> float:
    """Return the machine's float32 rate in FLOP/s: the median of five products of 3072 x 3072 matrices."""
    a, b = torch.randn(2, 3072, 3072, generator=torch.Generator().manual_seed(0)).to(device)
    seconds = [_timed(lambda: a @ b, device)[1] for _ in range(6)]
    return 2 * 3072**3 / statistics.median(seconds[1:])  # the first warms up


def bench_attacks(subject: Subject) -> list[Row]:
    """Time the attacks on the pool, and the plain whole-batch loop of the published search beside them."""
    model, x, y, eps = subject.model, subject.x, subject.y, subject.eps

    def views() -> torch.Generator:
        return runtime.seeded(0, "bench")

    calls: dict[str, Callable[[], attacks.Attack]] = {
        "PGD 40": lambda: attacks.pgd_linf(model, x, y, eps=eps, steps=40, step_size=eps / 10, generator=views()),
        "OPTBRITTLE ddn 200": lambda: attacks.ddn_l2(model, x, y, steps=200),
        "OPTBRITTLE adam 2 x 100": lambda: attacks.carlini_wagner_l2(model, x, y, search_steps=2, steps=100),
        "OPTMARGIN ddn 200": lambda: attacks.optmargin(model, x, y, eps=eps, generator=views()),
        "OPTMARGIN adam 2 x 50": lambda: attacks.optmargin(
            model, x, y, eps=eps, solver="adam", search_steps=2, steps=50, generator=views()
        ),
    }
    rows = []
    for name, call in calls.items():
        result, seconds = _timed(call, x.device)
        rows.append(
            {
                "what": name,
                "images": len(x),
                "seconds": seconds,
                "success": float(result.success.float().mean()),
                "mean_rms": float(result.rms[result.success].mean()),
                "forwards_per_s": int(result.forwards.sum()) / seconds,
                "backwards_per_s": int(result.backwards.sum()) / seconds,
            }
        )
    return rows


def bench_boundary(subject: Subject) -> list[Row]:
    """Time the pool of rays against the published walk, one image at a time, all its running rays in one batch."""
    x = subject.x[:8]
    dim = x[0].numel()
    directions = boundary.directions(dim, dim, negate=True, generator=runtime.seeded(0, "bench"))
    counted = _Counting(subject.model)

    def probe(search: str, precision: str) -> boundary.Profile:
        return boundary.probe(counted, x, directions, subject.magnitudes, search=search, precision=precision)

    calls: dict[str, Callable[[], Any]] = {
        "one image at a time": lambda: _walk(counted, x, directions, subject.magnitudes),
        "scan": lambda: probe("scan", "float32"),
        "bracket": lambda: probe("bracket", "float32"),
        "bracket, mixed": lambda: probe("bracket", "mixed"),
        "refine": lambda: probe("refine", "float32"),
    }
    rows, first = [], None
    for name, call in calls.items():
        counted.forwards = 0
        result, seconds = _timed(call, x.device)
        distance = result if isinstance(result, Tensor) else result.distance.float()
        first = (distance, seconds) if first is None else first
        rays = distance.numel()
        rows.append(
            {
                "what": name,
                "images": len(x),
                "seconds": seconds,
                "rays_per_s": rays / seconds,
                "forwards_per_ray": counted.forwards / rays,
                "forwards_per_s": counted.forwards / seconds,
                "agreement": float((distance == first[0]).float().mean()) if name != "refine" else float("nan"),
                "speed_up": first[1] / seconds,
            }
        )
    return rows


def bench_region(subject: Subject) -> list[Row]:
    """Time the vote over all images at once against one image at a time."""
    counted, x, radius = _Counting(subject.model), subject.x, subject.eps

    def vote(x: Tensor, stop: str) -> Tensor:
        generator = runtime.seeded(0, "bench")
        return region.classify(counted, x, radius=radius, stop=stop, generator=generator).label

    calls: dict[str, Callable[[], Tensor]] = {
        "one image at a time": lambda: torch.cat([vote(image, "none") for image in x.split(1)]),
        "all points": lambda: vote(x, "none"),
        "exact stop": lambda: vote(x, "exact"),
        "alpha stop": lambda: vote(x, "alpha"),
    }
    rows, first = [], None
    for name, call in calls.items():
        counted.forwards = 0
        label, seconds = _timed(call, x.device)
        first = (label, seconds) if first is None else first
        rows.append(
            {
                "what": name,
                "images": len(x),
                "seconds": seconds,
                "forwards_per_image": counted.forwards / len(x),
                "forwards_per_s": counted.forwards / seconds,
                "agreement": float((label == first[0]).float().mean()),
                "speed_up": first[1] / seconds,
            }
        )
    return rows


class _Counting(nn.Module):
    """Counts the images that a model is given; keeps its batch size."""

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model, self.forwards = model, 0
        self.batch_rows = getattr(model, "batch_rows", {})
        self.channels_last = getattr(model, "channels_last", False)

    def forward(self, x: Tensor) -> Tensor:
        self.forwards += len(x)
        z: Tensor = self.model(x)
        return z


def _walk(model: nn.Module, x: Tensor, directions: Tensor, magnitudes: list[float]) -> Tensor:
    """Return the distances (N, K) by the definition: each image alone, one magnitude after the other."""
    distance = torch.full((len(x), len(directions)), torch.inf, device=x.device)
    directions = directions.to(x.device)
    with runtime.frozen(model), torch.inference_mode():
        for i, image in enumerate(x):
            center = model(image[None]).argmax(1)
            running = torch.arange(len(directions), device=x.device)
            for t in torch.tensor(magnitudes).tolist():
                moved = (image + t * directions[running].view(-1, *image.shape)).clamp(0, 1)
                crossed = model(moved).argmax(1) != center
                distance[i, running[crossed]] = t
                running = running[~crossed]
                if not len(running):
                    break
    return distance


def _subject() -> Subject:
    """Train a model for a few seconds and return it with the images to measure on."""
    device = runtime.best_device()
    try:
        fitted, test, name = _mnist()
    except FileNotFoundError:
        fitted, test, name = _digits()
    small = name == "digits_cnn"
    model = models.build(name, in_shape=fitted.in_shape, num_classes=fitted.num_classes).to(device)
    generator = runtime.seeded(0, "bench")
    train.fit(
        model, fitted.to(device), epochs=8 if small else 1, validation=test.first(500).to(device), generator=generator
    )
    correct = runtime.predict(model, test.x) == test.y.to(device)
    keep = correct.nonzero().squeeze(1)[:32].cpu()
    steps = 99 if small else 49
    return Subject(
        f"{name}, {device.type}, {torch.get_num_threads()} threads",
        model,
        test.x[keep].to(device),
        test.y[keep].to(device),
        eps=0.15 if small else 0.3,
        magnitudes=[0.01 * (i + 1) for i in range(steps)],
        flops=1.8e6 if small else 27.8e6,
    )


def _mnist() -> tuple[data.ImageSet, data.ImageSet, str]:
    import os

    if "NBSUPPORT_DATA" not in os.environ:
        raise FileNotFoundError("NBSUPPORT_DATA is not set")
    return data.load("mnist", train=True, limit=20000), data.load("mnist", train=False, limit=1000), "mnist_cnn"


def _digits() -> tuple[data.ImageSet, data.ImageSet, str]:
    return data.load("digits", train=True), data.load("digits", train=False), "digits_cnn"


def _timed(call: Callable[[], T], device: torch.device) -> tuple[T, float]:
    _wait(device)
    start = time.perf_counter()
    result = call()
    _wait(device)
    return result, time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def _peak_gb() -> float:
    """Return the process's largest memory so far, in GB (Linux counts in kB, macOS in bytes)."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (1e6 if sys.platform.startswith("linux") else 1e9)
