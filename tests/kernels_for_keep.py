"""A small kernel and a model of known results for the tests of what a run keeps."""

from __future__ import annotations

import os
import signal
import time
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from nbsupport.record import Record


@dataclass(frozen=True, eq=False)
class Sums(Record):
    """What `sums` returns, (N,) each."""

    total: Tensor
    noise: Tensor


@dataclass(frozen=True, eq=False)
class Other(Record):
    """A record of any one column."""

    value: Tensor


class Weighted(nn.Module):
    """One weight."""

    def __init__(self, weight: float = 1.0) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.weight


class Calls:
    """What `sums` and `keeps` were called with, where `sums` stops, and where `placed` saw its record."""

    made: ClassVar[list[int]] = []
    given: ClassVar[list[Tensor]] = []
    seen: ClassVar[list[torch.device]] = []
    stop_at: ClassVar[float | None] = None


def sums(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    scale: float = 1.0,
    targets: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Sums:
    """Return scale * weight * (sum of each image) + y + targets, and one random number shared by all images."""
    if Calls.stop_at is not None and bool((x == Calls.stop_at).any()):
        raise KeyboardInterrupt
    Calls.made.append(len(x))
    with torch.no_grad():
        total = scale * model(x).flatten(1).sum(1) + y + (0 if targets is None else targets)
    return Sums(total, torch.rand((), generator=generator).expand(len(x)).contiguous())


def whose(
    model: nn.Module,
    x: Tensor,
    rows: Tensor,
    *,
    mark: str = "",
    factor: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> Other:
    """Return (N, 4): process, threads, rows * factor, a random number. Where `mark` is no file, make it and die."""
    if mark and not Path(mark).exists():
        Path(mark).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    drawn = float(torch.rand((), generator=generator))
    scaled = rows if factor is None else rows * factor
    facts = [[os.getpid(), torch.get_num_threads(), float(row), drawn] for row in scaled]
    return Other(torch.tensor(facts, dtype=torch.float64))


def one_row(model: nn.Module, x: Tensor) -> Other:
    """Return one row, however many images there are."""
    return Other(torch.zeros(1))


def total_of(record: Sums, *, plus: float, generator: torch.Generator | None = None) -> Other:
    """Return the sum of all rows: one piece."""
    Calls.made.append(-1)
    return Other(record.total.sum()[None] + plus + torch.rand(1, generator=generator))


def each_total(record: Sums, *, plus: float) -> list[Other]:
    """Return the sum of all rows plus one time and plus two times `plus`: two pieces, made together."""
    Calls.made.append(-2)
    return [Other(record.total.sum()[None] + times * plus) for times in (1, 2)]


def slowly(record: Sums) -> Other:
    """Return the sum of all rows, after a twentieth of a second."""
    time.sleep(0.05)
    return Other(record.total.sum()[None])


def placed(record: Sums) -> Other:
    """Return the sum of all rows, and note where they lie."""
    Calls.seen.append(record.total.device)
    return Other(record.total.sum()[None])


def keeps(model: nn.Module, x: Tensor, *, directions: Tensor) -> Other:
    """Return zeros, and note in `Calls.given` the directions that it was given."""
    Calls.given.append(directions)
    return Other(torch.zeros(len(x)))
