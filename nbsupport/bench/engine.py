"""The pace of a model in the engine: batches and nothing beside them."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from nbsupport import runtime
from nbsupport.attacks.engine import Objective, Problem
from nbsupport.bench import rates
from nbsupport.bench.counting import Counting
from nbsupport.bench.subject import Subject

SECONDS = 1.0  # measured for, at least
_WARM_UP = 2  # batches


@dataclass(frozen=True)
class Pace:
    """Images that passed forward and backward on batches of `rows` images, in `seconds`."""

    rows: int
    forwards: int
    backwards: int
    seconds: float

    @property
    def passes_per_s(self) -> float:
        """Forward and backward passes of one image, a second."""
        return (self.forwards + self.backwards) / self.seconds


def pace(
    subject: Subject,
    precision: runtime.Precision = "float32",
    *,
    backward: bool,
    rows: int | None = None,
    seconds: float = SECONDS,
) -> Pace:
    """Return the pace of the attacks' objective on batches of the subject's images, repeated where too few.

    With `backward` every batch goes forward and back to the pixels, as in a step of PGD; else forward only. `rows` is
    the size of a batch: at most, and where None, that of a full one.
    """
    model = Counting(subject.model)
    device = subject.device
    with runtime.frozen(model):
        problem = Problem.of(model, subject.x, subject.y, None)
        objective = Objective(problem, precision=precision)
        full = problem.rows()
        index = torch.arange(min(rows or full, full), device=device) % len(subject.x)
        x, y = subject.x[index], subject.y[index]

        def look() -> object:
            if backward:
                return objective.ascend(x, y)
            with torch.no_grad(), runtime.reduced_precision(precision, device):
                return model(runtime.laid_out(model, x))

        for _ in range(_WARM_UP):
            look()
        model.forwards = model.backwards = 0
        spent = 0.0
        while spent < seconds:
            spent += rates.timed(look, device)[1]
    return Pace(len(index), model.forwards, model.backwards, spent)


def paces(
    subject: Subject, *, backward: bool, rows: int | None = None, seconds: float = SECONDS
) -> dict[runtime.Precision, Pace]:
    """Return the pace in float32 and mixed; see `pace`."""
    return {
        precision: pace(subject, precision, backward=backward, rows=rows, seconds=seconds)
        for precision in runtime.PRECISIONS
    }
