"""The pool of rays against the published scan, one image at a time with all its running rays in one batch."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor, nn

from nbsupport import boundary, runtime
from nbsupport.bench import engine, published
from nbsupport.bench.measured import Measured, measure
from nbsupport.bench.narrator import Narrator
from nbsupport.bench.subject import Subject

Found = tuple[Tensor, Tensor]  # distance (N, K), adjacent (N, K)
Search = Callable[[nn.Module, Tensor, Tensor, list[float]], Found]  # (model, x, directions, magnitudes)
_STRIDE, _TOLERANCE = 8, 1e-4  # the searches' own
_WARM_UP_MAGNITUDES = 2


@dataclass(frozen=True)
class Case:
    """One row: a search, the passes of one ray that it takes at most, and how to call it."""

    what: str
    passes: int
    search: Search
    precision: runtime.Precision = "float32"
    on_grid: bool = True  # its distances are elements of the grid, so that they can be compared


def cases(magnitudes: list[float]) -> list[Case]:
    """Return the published scan, the same in the pool, then the faster searches."""
    first = _STRIDE - 1  # visited in full beside a boundary
    bracket = first + math.ceil(len(magnitudes) / _STRIDE) + math.ceil(math.log2(_STRIDE))
    refine = bracket + max(1, math.ceil(math.log2(magnitudes[0] / _TOLERANCE)))
    return [
        Case("scan, one image at a time", len(magnitudes), published.scan),
        Case("scan", len(magnitudes), _pooled("scan")),
        Case("bracket", bracket, _pooled("bracket")),
        Case("bracket, mixed", bracket, _pooled("bracket", "mixed"), "mixed"),
        Case("refine", refine, _pooled("refine"), on_grid=False),
    ]


def rows(
    subject: Subject, matrix_rate: float, narrator: Narrator, *, seconds: float = engine.SECONDS
) -> Iterator[dict[str, Any]]:
    """Yield one row a search; a ray agrees where its distance and its adjacent class are those of `scan`."""
    x, magnitudes = subject.x, subject.settings.magnitudes
    directions = _directions(subject)
    rays = len(x) * len(directions)
    paces = engine.paces(subject, backward=False, seconds=seconds)
    listed = cases(magnitudes)
    most = {case.what: case.passes * rays / paces[case.precision].passes_per_s for case in listed}
    narrator.coming(f"boundary, {len(x)} images x {len(directions)} directions, {len(listed)} rows", sum(most.values()))
    runs: list[Measured[Found]] = []
    for case in listed:
        narrator.coming(case.what, most[case.what])
        case.search(subject.model, x[:1], directions, magnitudes[:_WARM_UP_MAGNITUDES])
        tick = narrator.ticker(case.what, case.passes * rays, "passes at most")
        call = partial(_run, case.search, x, directions, magnitudes)
        runs.append(measure(subject, call, tick))
    one_at_a_time, scan = runs[:2]
    for case, run in zip(listed, runs, strict=True):
        differing = _differing(run.result, scan.result) if case.on_grid else None
        yield {
            "bench": "boundary",
            "what": case.what,
            "images": len(x),
            "seconds": run.seconds,
            "rays_per_s": rays / run.seconds,
            "forwards_per_ray": run.forwards / rays,
            "forwards_per_s": run.forwards / run.seconds,
            "agreement": None if differing is None else 1 - differing / rays,
            "differing": differing,
            "speed_up": one_at_a_time.seconds / run.seconds,
            "matrix_share": subject.share(run.forwards, run.seconds, matrix_rate),
            "peak_gb": run.peak / 1e9,
        }


def _directions(subject: Subject) -> Tensor:
    """Return the directions of the standard preset; a data set whose settings leave them open has at most 1000."""
    settings, dim = subject.settings, subject.x[0].numel()
    count = min(dim, settings.directions or 1000)
    return boundary.directions(dim, count, negate=settings.negate, generator=runtime.seeded(0, "bench"))


def _run(search: Search, x: Tensor, directions: Tensor, magnitudes: list[float], model: nn.Module) -> Found:
    return search(model, x, directions, magnitudes)


def _pooled(search: str, precision: runtime.Precision = "float32") -> Search:
    def run(model: nn.Module, x: Tensor, directions: Tensor, magnitudes: list[float]) -> Found:
        profile = boundary.probe(model, x, directions, magnitudes, search=search, precision=precision)
        return profile.distance, profile.adjacent

    return run


def _differing(found: Found, scan: Found) -> int:
    """Return how many rays differ in distance or adjacent class."""
    return int(((found[0] != scan[0]) | (found[1] != scan[1])).sum())
