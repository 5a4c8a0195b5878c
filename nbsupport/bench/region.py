"""The vote over all images at once against the vote one image at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nbsupport import region, runtime
from nbsupport.bench import engine, published
from nbsupport.bench.measured import Measured, measure
from nbsupport.bench.narrator import Narrator
from nbsupport.bench.subject import Subject

_WARM_UP_IMAGES = 8


@dataclass(frozen=True)
class Case:
    """One row: its name, and the labels (N,) that it gives the images of a subject."""

    what: str
    classify: Callable[[Subject, Tensor, nn.Module], Tensor]
    precision: runtime.Precision = "float32"


def cases() -> list[Case]:
    """Return the vote one image at a time, over all points at once, and with the rules that stop it earlier."""
    return [
        Case("one image at a time", _one_at_a_time),
        Case("all points", _pooled("none")),
        Case("exact stop", _pooled("exact")),
        Case("alpha stop", _pooled("alpha")),
        Case("exact stop, mixed", _pooled("exact", "mixed"), "mixed"),
    ]


def rows(
    subject: Subject, matrix_rate: float, narrator: Narrator, *, seconds: float = engine.SECONDS
) -> Iterator[dict[str, Any]]:
    """Yield one row a rule; an image agrees where its label is that of all points. All rows share their points."""
    x = subject.x
    most = subject.settings.samples * len(x)
    paces = engine.paces(subject, backward=False, seconds=seconds)
    listed = cases()
    left = sum(most / paces[case.precision].passes_per_s for case in listed)
    narrator.coming(f"region, {len(x)} images x {subject.settings.samples} points, {len(listed)} rows", left)
    runs: list[Measured[Tensor]] = []
    for case in listed:
        narrator.coming(case.what, most / paces[case.precision].passes_per_s)
        case.classify(subject, x[:_WARM_UP_IMAGES], subject.model)
        tick = narrator.ticker(case.what, most, "passes at most")
        runs.append(measure(subject, partial(case.classify, subject, x), tick))
    one_at_a_time, every = runs[:2]
    for case, run in zip(listed, runs, strict=True):
        differing = int((run.result != every.result).sum())
        yield {
            "bench": "region",
            "what": case.what,
            "images": len(x),
            "seconds": run.seconds,
            "forwards_per_image": run.forwards / len(x),
            "forwards_per_s": run.forwards / run.seconds,
            "agreement": 1 - differing / len(x),
            "differing": differing,
            "speed_up": one_at_a_time.seconds / run.seconds,
            "matrix_share": subject.share(run.forwards, run.seconds, matrix_rate),
            "peak_gb": run.peak / 1e9,
        }


def _one_at_a_time(subject: Subject, x: Tensor, model: nn.Module) -> Tensor:
    points = torch.rand(subject.settings.samples, x[0].numel(), generator=_draws())
    return published.vote(model, x, 2 * points - 1, radius=subject.settings.radius)


def _pooled(stop: str, precision: runtime.Precision = "float32") -> Callable[[Subject, Tensor, nn.Module], Tensor]:
    def classify(subject: Subject, x: Tensor, model: nn.Module) -> Tensor:
        settings = subject.settings
        return region.classify(
            model,
            x,
            radius=settings.radius,
            samples=settings.samples,
            stop=stop,
            generator=_draws(),
            precision=precision,
        ).label

    return classify


def _draws() -> torch.Generator:
    return runtime.seeded(0, "bench")
