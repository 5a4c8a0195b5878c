"""What a machine gives: its name, its own matrix rate, seconds, and the largest memory."""

from __future__ import annotations

import contextlib
import copy
import os
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from nbsupport import attacks, runtime

T = TypeVar("T")
SIZE = 3072  # of the matrices: large enough to fill a GPU, 0.6 s on one core
SLOTS, STEPS = 64, 5  # of the attack whose memory is measured
_PROC = Path("/proc")
# glibc hands freed blocks back at once, so that the peak is what was held, not what was kept for the next call: left to
# itself it kept 13 to 20 MB more after many calls, whatever the number of images.
_NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def described(device: torch.device) -> dict[str, Any]:
    """Return what a timing must be read with: the device and its name, the threads, the versions."""
    return {
        "device": device.type,
        "device_name": torch.cuda.get_device_name(device) if device.type == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "python": platform.python_version(),
    }


def _processor() -> str:
    """Return the processor's name: Python's own `platform` knows none on Linux."""
    names = [line.partition(":")[2].strip() for line in _lines("cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _lines(name: str) -> list[str]:
    """Return the lines of a file below /proc, none where the system has no such file."""
    path = _PROC / name
    return path.read_text().splitlines() if path.exists() else []


def matrix_rate(device: torch.device) -> float:
    """Return the machine's float32 rate in FLOP/s: the median of five products of 3072 x 3072 matrices."""
    a, b = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    with runtime.full_float32():
        seconds = [timed(lambda: a @ b, device)[1] for _ in range(6)]
    return 2 * SIZE**3 / statistics.median(seconds[1:])  # the first warms up


def timed(call: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Return what `call` returns, and its seconds, the device's work included."""
    wait = torch.cuda.synchronize if device.type == "cuda" else lambda device: None
    wait(device)
    start = time.perf_counter()
    result = call()
    wait(device)
    return result, time.perf_counter() - start


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of the peak; where the system offers none (macOS), the process's own goes on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif (_PROC / "self/clear_refs").exists():
        with contextlib.suppress(OSError):  # a container may forbid it
            (_PROC / "self/clear_refs").write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Return the largest memory since `reset_peak`: allocated on a GPU, else of the process.

    Linux keeps the process's own in VmHWM. `ru_maxrss` serves elsewhere: on Linux it can be neither reset nor trusted
    in a child, which inherits it from the process that started it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    for line in _lines("self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)


def memory_growth(model: nn.Module, x: Tensor, y: Tensor, counts: tuple[int, ...]) -> list[int]:
    """Return by how many bytes the peak has grown after OPTBRITTLE ddn attacked each of `counts` images in 64 slots.

    The images are repeated where there are too few. On a CPU a fresh process measures: in this one, memory that was
    freed before would hide the growth.
    """
    model = copy.deepcopy(model)
    vars(model)["batch_rows"] = {"cpu": SLOTS, "cuda": SLOTS}
    if x.device.type == "cuda":
        return _growth(model, x, y, counts)
    added = {name: value for name, value in _NOTHING_KEPT.items() if name not in os.environ}
    os.environ.update(added)  # only a process that starts with them heeds them
    threads = (torch.get_num_threads(),)
    try:
        with ProcessPoolExecutor(1, get_context("spawn"), torch.set_num_threads, threads) as pool:
            return pool.submit(_growth, model, x, y, counts).result()
    finally:
        for name in added:
            del os.environ[name]


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
