"""What is timed: the attacks, the boundary maps and the vote, each beside plain code that does the same."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nbsupport import attacks, boundary, region, runtime
from nbsupport.bench import machine, peers, published, timing
from nbsupport.bench.results import Narrator, Row
from nbsupport.bench.subject import Subject
from nbsupport.bench.timing import Case, Measured

MEMORY_COUNTS = (64, 1000)  # images attacked
_STRIDE, _TOLERANCE = 8, 1e-4  # of the searches along a ray
Found = attacks.Attack | Tensor  # of an attack; of others only the images (N, C, H, W)


def rows(name: str, subject: Subject, matrix_rate: float, narrator: Narrator, *, seconds: float) -> Iterator[Row]:
    """Yield the rows of the benchmark `name`; "attacks" begins with the model alone and ends with memory."""
    backward = name in ("attacks", "published")
    paces = {}
    for precision in runtime.PRECISIONS:
        case = timing.batch(subject, precision, backward=backward)
        run = paces[precision] = timing.measure(case, subject, seconds=seconds)
        if name == "attacks":
            yield {"bench": "engine", **case.row(subject, run, run, matrix_rate)}
            case = timing.batch(subject, precision, backward=True, rows=len(subject.x))  # what a search will meet
            paces[precision] = timing.measure(case, subject, seconds=seconds / 4)
    for row in timing.rows(_LISTED[name](subject, narrator), subject, matrix_rate, narrator, paces):
        yield {"bench": name, **row}
    if name == "attacks":
        narrator.coming("memory", 2 * machine.STEPS * sum(MEMORY_COUNTS) / paces["float32"].passes_per_s)
        yield from memory(subject)


def memory(subject: Subject) -> Iterator[Row]:
    """Yield the growth of the peak of memory as more images are attacked: their own size, and no more."""
    grown = machine.memory_growth(subject.model, subject.x, subject.y, MEMORY_COUNTS)
    for count, size in zip(MEMORY_COUNTS, grown, strict=True):
        yield {
            "bench": "memory",
            "what": f"OPTBRITTLE ddn {machine.STEPS}, {machine.SLOTS} slots",
            "images": count,
            "growth_mb": size / 1e6,
            "inputs_and_results_mb": 2 * count * subject.x[0].nbytes / 1e6,
        }


def all_attacks(subject: Subject, narrator: Narrator) -> list[Case]:
    """Return the attacks of this package, the published loop, and another library's where it is installed."""
    loop = _on(published.carlini_wagner)
    plain = Case("whole-batch C&W 4 x 200", loop, 200, 4 * 200 * 2, attacked, {"search_steps": 4})
    return [*own_attacks(subject), plain, *peers.foolbox(attacked, narrator)]


def own_attacks(subject: Subject) -> list[Case]:
    """Return the attacks of this package; those that search long also in mixed precision, right after float32."""
    s = subject.settings
    pgd, margin, eps = _on(attacks.pgd_linf, draws=True), _on(attacks.optmargin, draws=True), {"eps": s.view_eps}
    cases = [
        Case("PGD 40", pgd, 40, 40 * 2, attacked, {"eps": s.eps, "step_size": s.pgd_step_size}),
        Case("OPTBRITTLE ddn 200", _on(attacks.ddn_l2), 200, 200 * 2, attacked),
    ]
    adam = eps | {"solver": "adam", "search_steps": 2}
    for case in (
        Case(
            "OPTBRITTLE adam 4 x 200", _on(attacks.carlini_wagner_l2), 200, 4 * 200 * 2, attacked, {"search_steps": 4}
        ),
        Case("OPTMARGIN ddn 200", margin, 200, 200 * (20 + 2 * 5), attacked, eps),
        Case("OPTMARGIN adam 2 x 50", margin, 50, 2 * 50 * 2 * 20, attacked, adam),
    ):
        confirmed = case.passes * 2 // 3  # at most: a look that found something is repeated in float32
        options = {**case.options, "precision": "mixed"}
        cases += [case, replace(case, what=f"{case.what}, mixed", passes=case.passes + confirmed, options=options)]
    return cases


def published_attacks(subject: Subject, narrator: Narrator) -> list[Case]:
    """Return OPTMARGIN by `ddn`, and by `adam` at the published settings in both variants: 4 x 1000 steps."""
    s, margin, passes = subject.settings, _on(attacks.optmargin, draws=True), 4 * 1000 * 2 * 20
    eps = {"eps": s.view_eps}
    adam = eps | {"solver": "adam", "variant": "equations", "lr": s.lr_adam, "initial_const": s.initial_const}
    authors = adam | {"variant": "authors", "lr": s.authors_lr, "initial_const": s.authors_const}
    authors["distance_scale"] = s.distance_scale
    return [
        Case("OPTMARGIN ddn 200", margin, 200, 200 * (20 + 2 * 5), attacked, eps),
        Case("OPTMARGIN adam 4 x 1000, equations", margin, 1000, passes, attacked, adam),
        Case("OPTMARGIN adam 4 x 1000, authors", margin, 1000, passes, attacked, authors),
    ]


def _on(attack: Callable[..., Found], *, draws: bool = False) -> Callable[..., Found]:
    """Return `attack` as a case calls it; one that `draws` draws the same numbers every time."""

    def call(subject: Subject, steps: int, **options: Any) -> Found:
        if draws:
            options["generator"] = _draws()
        return attack(subject.model, subject.x, subject.y, steps=steps, **options)

    return call


def _draws() -> torch.Generator:
    return runtime.seeded(0, "bench")


def attacked(subject: Subject, run: Measured, first: Measured) -> Row:
    """Return what is said of an attack, and whether the true label wins the vote on its images."""
    s, n = subject.settings, len(subject.x)
    x_adv, success, rms = judged(subject, run.result)
    generator = runtime.seeded(0, "bench", "region")
    vote = region.classify(subject.model, x_adv, radius=s.radius, samples=s.samples, generator=generator)
    return {
        "success": float(success.float().mean()),
        "mean_rms": float(rms[success].mean()) if bool(success.any()) else None,
        "region_accuracy": float((vote.label == subject.y).float().mean()),
        "forwards_per_image": run.forwards / n,
        "backwards_per_image": run.backwards / n,
        "passes_per_s": run.passes_per_s,
    }


def judged(subject: Subject, found: Found) -> tuple[Tensor, Tensor, Tensor]:
    """Return images (N, C, H, W), success (N,), RMS (N,): an attack's own, or of images re-checked here in float32."""
    if isinstance(found, attacks.Attack):
        return found.x_adv, found.success, found.rms
    x_adv = found.clamp(0, 1)
    success = runtime.predict(subject.model, x_adv) != subject.y
    return x_adv, success, (x_adv - subject.x).square().flatten(1).mean(1).sqrt()


def searches(subject: Subject, narrator: Narrator) -> list[Case]:
    """Return the published scan, one image at a time, the same in the pool of rays, then the faster searches.

    Directions and magnitudes are those of the standard preset; a ray agrees where its distance and its adjacent class
    are those of the published scan.
    """
    s, dim = subject.settings, subject.x[0].numel()
    grid = s.magnitudes
    count = min(dim, s.directions or 1000)
    directions = boundary.directions(dim, count, negate=s.negate, generator=_draws())
    bracket = _STRIDE - 1  # visited in full beside a boundary
    bracket += math.ceil(len(grid) / _STRIDE) + math.ceil(math.log2(_STRIDE))
    refine = bracket + max(1, math.ceil(math.log2(grid[0] / _TOLERANCE)))

    def scan(subject: Subject, steps: int) -> tuple[Tensor, Tensor]:
        return published.scan(subject.model, subject.x, directions, grid[:steps])

    def pooled(subject: Subject, steps: int, **options: Any) -> tuple[Tensor, Tensor]:
        found = boundary.probe(subject.model, subject.x, directions, grid[:steps], **options)
        return found.distance, found.adjacent

    listed: list[tuple[str, Callable[..., Any], int, dict[str, Any]]] = [
        ("scan, one image at a time", scan, len(grid), {}),
        ("scan", pooled, len(grid), {"search": "scan"}),
        ("bracket", pooled, bracket, {"search": "bracket"}),
        ("bracket, mixed", pooled, bracket, {"search": "bracket", "precision": "mixed"}),
        ("refine", pooled, refine, {"search": "refine"}),
    ]
    return [
        Case(what, call, len(grid), passes * len(directions), partial(mapped, on_grid=what != "refine"), options)
        for what, call, passes, options in listed
    ]


def mapped(subject: Subject, run: Measured, first: Measured, *, on_grid: bool) -> Row:
    """Return what is said of a search; only distances that are elements of the grid (`on_grid`) can be compared."""
    distance, adjacent = run.result
    equal = (distance == first.result[0]) & (adjacent == first.result[1])
    return {
        "rays_per_s": distance.numel() / run.seconds,
        "forwards_per_ray": run.forwards / distance.numel(),
        **_compared(run, first, equal if on_grid else None),
    }


def votes(subject: Subject, narrator: Narrator) -> list[Case]:
    """Return the vote one image at a time, over all points at once, and with the rules that stop it earlier.

    All share their points; an image agrees where its label is that of the vote one image at a time.
    """
    radius, samples = subject.settings.radius, subject.settings.samples

    def one_at_a_time(subject: Subject, steps: int) -> Tensor:
        points = torch.rand(steps, subject.x[0].numel(), generator=_draws())
        return published.vote(subject.model, subject.x, 2 * points - 1, radius=radius)

    def pooled(subject: Subject, steps: int, **options: Any) -> Tensor:
        given = {"radius": radius, "samples": steps, "generator": _draws(), **options}
        return region.classify(subject.model, subject.x, **given).label

    listed: list[tuple[str, Callable[..., Any], dict[str, Any]]] = [
        ("one image at a time", one_at_a_time, {}),
        ("all points", pooled, {"stop": "none"}),
        ("exact stop", pooled, {"stop": "exact"}),
        ("alpha stop", pooled, {"stop": "alpha"}),
        ("exact stop, mixed", pooled, {"stop": "exact", "precision": "mixed"}),
    ]
    return [Case(what, call, samples, samples, voted, options, warm_up=samples) for what, call, options in listed]


def voted(subject: Subject, run: Measured, first: Measured) -> Row:
    """Return what is said of a vote."""
    equal = run.result == first.result
    return {"forwards_per_image": run.forwards / len(equal), **_compared(run, first, equal)}


def _compared(run: Measured, first: Measured, equal: Tensor | None) -> Row:
    """Return the columns of a row that repeats the work of the first one, and found the same where `equal`."""
    return {
        "forwards_per_s": run.passes_per_s,
        "agreement": None if equal is None else float(equal.double().mean()),
        "differing": None if equal is None else int((~equal).sum()),
        "speed_up": first.seconds / run.seconds,
        "peak_gb": run.peak / 1e9,
    }


_LISTED = {"attacks": all_attacks, "published": published_attacks, "boundary": searches, "region": votes}
