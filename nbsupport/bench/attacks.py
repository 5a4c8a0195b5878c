"""The attacks against the published whole-batch loop and another library, on the same model and images."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from nbsupport import attacks, region, runtime
from nbsupport.attacks.engine import Objective, Problem, across
from nbsupport.bench import attack_cases, engine, memory
from nbsupport.bench.attack_cases import Case, Result
from nbsupport.bench.measured import measure
from nbsupport.bench.narrator import Narrator
from nbsupport.bench.subject import Subject

Row = dict[str, Any]
Paces = dict[runtime.Precision, engine.Pace]
_WARM_UP_STEPS = 2
_WARM_UP_IMAGES = 8  # on a CPU; on a GPU, where it costs nothing, all


def rows(subject: Subject, matrix_rate: float, narrator: Narrator, *, seconds: float = engine.SECONDS) -> Iterator[Row]:
    """Yield the rows of the engine alone, of every attack, and of the memory that one takes."""
    for precision, pace in engine.paces(subject, backward=True, seconds=seconds).items():
        yield {"bench": "engine", **_engine_row(subject, matrix_rate, precision, pace)}
    paces = engine.paces(subject, backward=True, rows=len(subject.x), seconds=seconds / 4)  # what a search will meet
    cases = attack_cases.ours() + attack_cases.others(narrator)
    for row in _case_rows(subject, matrix_rate, narrator, cases, paces):
        yield {"bench": "attacks", **row}
    narrator.coming("memory", 2 * memory.STEPS * sum(memory.COUNTS) / paces["float32"].passes_per_s)
    for row in memory.rows(subject):
        yield {"bench": "memory", **row}


def published_rows(
    subject: Subject, matrix_rate: float, narrator: Narrator, *, seconds: float = engine.SECONDS
) -> Iterator[Row]:
    """Yield the rows of OPTMARGIN by `ddn` and as published."""
    paces = engine.paces(subject, backward=True, seconds=seconds / 4)
    for row in _case_rows(subject, matrix_rate, narrator, attack_cases.as_published(), paces):
        yield {"bench": "published", **row}


def _case_rows(
    subject: Subject, matrix_rate: float, narrator: Narrator, cases: list[Case], paces: Paces
) -> Iterator[Row]:
    whole = sum(_most(subject, case, paces) for case in cases)
    narrator.coming(f"{len(cases)} attacks, {len(subject.x)} images", whole)
    for case in cases:
        narrator.coming(case.what, _most(subject, case, paces))
        yield case_row(subject, matrix_rate, case, narrator)


def _most(subject: Subject, case: Case, paces: Paces) -> float:
    """Return the seconds that `case` takes at most."""
    return case.passes * len(subject.x) / paces[case.precision].passes_per_s


def _engine_row(subject: Subject, matrix_rate: float, precision: str, pace: engine.Pace) -> Row:
    return {
        "what": f"forward and backward, {precision}",
        "images": pace.rows,
        "seconds": pace.seconds,
        "passes_per_s": pace.passes_per_s,
        "matrix_share": subject.share(pace.passes_per_s, 1.0, matrix_rate),
    }


def case_row(subject: Subject, matrix_rate: float, case: Case, narrator: Narrator) -> Row:
    """Return the row of one attack, which has run once for a moment before it is timed."""
    n = len(subject.x)
    warm = subject if subject.device.type == "cuda" else subject.first(_WARM_UP_IMAGES)
    case.attack(subject.model, warm, min(case.steps, _WARM_UP_STEPS))
    tick = narrator.ticker(case.what, case.passes * n, "passes at most")
    run = measure(subject, partial(_run, case, subject), tick)
    success, rms = judged(subject, run.result)
    x_adv = run.result.x_adv if isinstance(run.result, attacks.Attack) else run.result.clamp(0, 1)
    return {
        "what": case.what,
        "images": n,
        "seconds": run.seconds,
        "success": float(success.float().mean()),
        "mean_rms": float(rms[success].mean()) if bool(success.any()) else None,
        "region_accuracy": _region_accuracy(subject, x_adv),
        "forwards_per_image": run.forwards / n,
        "backwards_per_image": run.backwards / n,
        "passes_per_s": run.passes / run.seconds,
        "matrix_share": subject.share(run.passes, run.seconds, matrix_rate),
    }


def _region_accuracy(subject: Subject, x_adv: Tensor) -> float:
    """Return the share of the attacked images whose true label wins the vote."""
    s = subject.settings
    generator = runtime.seeded(0, "bench", "region")
    vote = region.classify(subject.model, x_adv, radius=s.radius, samples=s.samples, generator=generator)
    return float((vote.label == subject.y).float().mean())


def _run(case: Case, subject: Subject, model: nn.Module) -> Result:
    return case.attack(model, subject, case.steps)


def judged(subject: Subject, result: Result) -> tuple[Tensor, Tensor]:
    """Return success (N,) and RMS (N,): an attack's own, or of images (N, C, H, W) re-checked here in float32."""
    if isinstance(result, attacks.Attack):
        return result.success, result.rms
    x_adv = result.clamp(0, 1)
    rms = (x_adv - subject.x).square().flatten(1).mean(1).sqrt()
    with runtime.frozen(subject.model):
        problem = Problem.of(subject.model, subject.x, subject.y, None)
        parts = zip(x_adv.split(problem.rows()), problem.label.split(problem.rows()), strict=True)
        margin = torch.cat([Objective(problem).margins(*part).squeeze(1) for part in parts])
    return across(margin) & problem.correct, rms
