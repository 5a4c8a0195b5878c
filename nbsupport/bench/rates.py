"""What a machine gives: its own matrix rate, seconds, and the largest memory so far."""

from __future__ import annotations

import contextlib
import platform
import resource
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import torch

from nbsupport import runtime

T = TypeVar("T")
SIZE = 3072  # of the matrices: large enough to fill a GPU, 0.6 s on one core
_PEAK_RESET = Path("/proc/self/clear_refs")
_STATUS = Path("/proc/self/status")


def machine(device: torch.device) -> dict[str, Any]:
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
    listed = Path("/proc/cpuinfo")
    lines = listed.read_text().splitlines() if listed.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def matrix_rate(device: torch.device) -> float:
    """Return the machine's float32 rate in FLOP/s: the median of five products of 3072 x 3072 matrices."""
    a, b = torch.randn(2, SIZE, SIZE, generator=torch.Generator().manual_seed(0)).to(device)
    with runtime.full_float32():
        seconds = [timed(lambda: a @ b, device)[1] for _ in range(6)]
    return 2 * SIZE**3 / statistics.median(seconds[1:])  # the first warms up


def timed(call: Callable[[], T], device: torch.device) -> tuple[T, float]:
    """Return what `call` returns, and its seconds, the device's work included."""
    _wait(device)
    start = time.perf_counter()
    result = call()
    _wait(device)
    return result, time.perf_counter() - start


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def reset_peak(device: torch.device) -> None:
    """Begin a new measurement of the peak; where the system offers none (macOS), the process's own goes on."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    elif _PEAK_RESET.exists():
        with contextlib.suppress(OSError):  # a container may forbid it
            _PEAK_RESET.write_text("5")


def peak_bytes(device: torch.device) -> int:
    """Return the largest memory since `reset_peak`: allocated on a GPU, else of the process.

    Linux keeps the process's own in VmHWM. `ru_maxrss` serves elsewhere: on Linux it can be neither reset nor trusted
    in a child, which inherits it from the process that started it.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    for line in lines:
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak * (1 if sys.platform == "darwin" else 1024)
