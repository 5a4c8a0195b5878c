"""How much memory an attack takes: through 64 slots, ten times as many images may cost their own size and no more."""

from __future__ import annotations

import contextlib
import copy
import os
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from typing import Any

import torch
from torch import Tensor, nn

from nbsupport import attacks
from nbsupport.bench import rates
from nbsupport.bench.subject import Subject

SLOTS = 64
COUNTS = (64, 1000)  # images attacked
STEPS = 5
# glibc hands freed blocks back at once, so that the peak is what was held, not what was kept for the next call: left to
# itself it kept 13 to 20 MB more after many calls, whatever the number of images.
_NOTHING_KEPT = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}


def rows(subject: Subject, counts: tuple[int, ...] = COUNTS) -> Iterator[dict[str, Any]]:
    """Yield the growth of the peak while OPTBRITTLE ddn attacks so many images in 64 slots, and the images' own size.

    On a CPU a fresh process measures: in this one, memory that earlier rows have freed would hide the growth.
    """
    model = copy.deepcopy(subject.model)
    vars(model)["batch_rows"] = {"cpu": SLOTS, "cuda": SLOTS}
    if subject.device.type == "cuda":
        grown = growth(model, subject.x, subject.y, counts)
    else:
        grown = _in_a_fresh_process(model, subject.x, subject.y, counts)
    for count, size in zip(counts, grown, strict=True):
        own = 2 * count * subject.x[0].numel() * subject.x.element_size()
        yield {
            "what": f"OPTBRITTLE ddn {STEPS}, {SLOTS} slots",
            "images": count,
            "growth_mb": size / 1e6,
            "inputs_and_results_mb": own / 1e6,
        }


def growth(model: nn.Module, x: Tensor, y: Tensor, counts: tuple[int, ...]) -> list[int]:
    """Return by how many bytes the peak has grown after each of the attacks on `counts` images, inputs included."""
    rates.reset_peak(x.device)
    attacks.ddn_l2(model, x[:1], y[:1], steps=STEPS)  # loads what the first call loads
    before = rates.peak_bytes(x.device)
    grown = []
    for count in counts:
        index = torch.arange(count, device=x.device) % len(x)
        attacks.ddn_l2(model, x[index], y[index], steps=STEPS)
        grown.append(rates.peak_bytes(x.device) - before)
    return grown


def _in_a_fresh_process(model: nn.Module, x: Tensor, y: Tensor, counts: tuple[int, ...]) -> list[int]:
    threads = torch.get_num_threads()
    pool = ProcessPoolExecutor(
        1, mp_context=get_context("spawn"), initializer=torch.set_num_threads, initargs=(threads,)
    )
    with _environment(_NOTHING_KEPT), pool:
        return pool.submit(growth, model, x, y, counts).result()


@contextlib.contextmanager
def _environment(settings: dict[str, str]) -> Iterator[None]:
    """Set environment variables for processes that start within."""
    before = {name: os.environ.get(name) for name in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
