"""One call on the model, timed: what it returned, the passes it took, the largest memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import nn

from nbsupport.bench import rates
from nbsupport.bench.counting import Counting, Tick
from nbsupport.bench.subject import Subject

T = TypeVar("T")


@dataclass(frozen=True, eq=False)
class Measured(Generic[T]):
    """What a call returned, its seconds, the images that passed forward and backward, and the peak in bytes."""

    result: T
    seconds: float
    forwards: int
    backwards: int
    peak: int

    @property
    def passes(self) -> int:
        """Images that passed, forward and backward."""
        return self.forwards + self.backwards


def measure(subject: Subject, call: Callable[[nn.Module], T], tick: Tick | None = None) -> Measured[T]:
    """Return `call(model)` measured; `tick` hears of every forward pass."""
    model = Counting(subject.model, tick)
    rates.reset_peak(subject.device)
    result, seconds = rates.timed(lambda: call(model), subject.device)
    return Measured(result, seconds, model.forwards, model.backwards, rates.peak_bytes(subject.device))
