"""The one loop that times: a case is called, its passes are counted, and what it found becomes a row."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from nbsupport import runtime
from nbsupport.bench import machine
from nbsupport.bench.results import Narrator, Row, Tick
from nbsupport.bench.subject import Subject

_WARM_UP_IMAGES = 8  # on a CPU; on a GPU, where it costs nothing, all


@dataclass(frozen=True, eq=False)
class Measured:
    """What a call returned, its seconds, the images that passed forward and backward, and the peak in bytes."""

    result: Any
    seconds: float
    forwards: int
    backwards: int
    peak: int

    @property
    def passes_per_s(self) -> float:
        """Forward and backward passes of one image, a second."""
        return (self.forwards + self.backwards) / self.seconds


Said = Callable[[Subject, Measured, Measured], Row]


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
    said : callable
        `said(subject, run, first)` returns columns, from its own run and that of the first row of the table.
    options : mapping
        What the kernel is told; its `precision`, where there is one, tells by which pace its duration is estimated.
    warm_up : int
        Steps of the call before, which is not timed.
    plain : bool
        It is handed the model as its users have it; see `plain`.
    """

    what: str
    call: Callable[..., Any]
    steps: int
    passes: int
    said: Said
    options: Mapping[str, Any] = field(default_factory=dict)
    warm_up: int = 2
    plain: bool = False

    def row(self, subject: Subject, run: Measured, first: Measured, matrix_rate: float) -> Row:
        """Return the row of `run`; the FLOP/s of its passes are stated as a share of `matrix_rate`."""
        return {
            "what": self.what,
            "images": len(subject.x),
            "seconds": run.seconds,
            **self.said(subject, run, first),
            "matrix_share": subject.flops * run.passes_per_s / matrix_rate,
        }


def rows(
    cases: list[Case], subject: Subject, matrix_rate: float, narrator: Narrator, paces: Mapping[str, Measured]
) -> Iterator[Row]:
    """Yield the row of each case as soon as it is timed; `paces`, by precision, tell how long each may take."""
    n = len(subject.x)
    most = [case.passes * n / paces[case.options.get("precision", "float32")].passes_per_s for case in cases]
    narrator.coming(f"{len(cases)} rows, {n} images", sum(most))
    first = None
    for case, seconds in zip(cases, most, strict=True):
        narrator.coming(case.what, seconds)
        run = measure(case, subject, narrator.ticker(case.what, case.passes * n, "passes at most"))
        first = first or run
        yield case.row(subject, run, first, matrix_rate)


def measure(case: Case, subject: Subject, tick: Tick = lambda done: None, *, seconds: float = 0.0) -> Measured:
    """Return `case` measured after a warm-up, called until `seconds` have passed.

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

    if case.plain:
        subject = replace(subject, model=plain(subject.model))
    spent = 0.0
    with contextlib.nullcontext() if case.plain else runtime.frozen(subject.model):
        warm = subject if subject.device.type == "cuda" else subject.first(_WARM_UP_IMAGES)
        case.call(warm, min(case.steps, case.warm_up), **case.options)
        machine.reset_peak(subject.device)
        hook = subject.model.register_forward_hook(count_forward)
        try:
            while True:
                result, last = machine.timed(lambda: case.call(subject, case.steps, **case.options), subject.device)
                spent += last
                if spent >= seconds:
                    break
        finally:
            hook.remove()
    return Measured(result, spent, forwards, backwards, machine.peak_bytes(subject.device))


def batch(subject: Subject, precision: runtime.Precision, *, backward: bool, rows: int | None = None) -> Case:
    """Return the model alone, on one batch of the subject's images, repeated where too few; its result is their number.

    With `backward` the batch goes forward and back to the pixels, as in a step of PGD; else forward only. `rows` is
    the size of the batch: at most, and where None, that of a full one.
    """
    full = runtime.rows_per_batch(subject.model, tuple(subject.x.shape[1:]), subject.device)
    index = torch.arange(min(rows or full, full), device=subject.device) % len(subject.x)
    x, y = subject.x[index].requires_grad_(backward), subject.y[index]

    def call(subject: Subject, steps: int, precision: runtime.Precision) -> int:
        with torch.set_grad_enabled(backward), runtime.reduced_precision(precision, subject.device):
            logits = subject.model(runtime.laid_out(subject.model, x))
        if backward:
            torch.autograd.grad(logits.gather(1, y[:, None]).sum(), x)
        return len(x)

    def said(subject: Subject, run: Measured, first: Measured) -> Row:
        return {"images": run.result, "passes_per_s": run.passes_per_s}

    way = "forward and backward" if backward else "forward"
    return Case(f"{way}, {precision}", call, 1, 2 if backward else 1, said, {"precision": precision})


def plain(model: nn.Module) -> nn.Module:
    """Return a copy of `model` in evaluation mode, its weights in NCHW order and taking gradients.

    That is what `model.eval()` gives after training, and what other libraries are handed. Their backward passes then
    compute the gradients of the weights as well.
    """
    copied = copy.deepcopy(model)
    copied.to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    return copied.eval().requires_grad_()
