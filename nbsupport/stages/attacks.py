"""Stage 03: every attack on both models."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from nbsupport import attacks, runtime, tables
from nbsupport.attacks import Attack
from nbsupport.data import ImageSet
from nbsupport.presets import Settings
from nbsupport.stages.inputs import MODELS, evaluation_data, images_per_shard, load_model
from nbsupport.store import Run

STAGE = "03_attacks"


@dataclass(frozen=True)
class Recipe:
    """One attack of a run: how it is called, on how many images, and what the table says of it."""

    call: Callable[[nn.Module, Tensor, Tensor, torch.Generator], Attack]
    n: int
    solver: str | None = None
    variant: str | None = None
    eps: float | None = None
    confidence: float | None = None


@dataclass(frozen=True, eq=False)
class Examples:
    """The images that one attack was given on one model, and what it made of them.

    `index` (N,) are positions in the test set; `x` (N, C, H, W) and `y` (N,) the images and labels; `seconds` is what
    the attack took.
    """

    model: str
    name: str
    index: Tensor
    x: Tensor
    y: Tensor
    result: Attack
    seconds: float


def recipes(s: Settings) -> dict[str, Recipe]:
    """Return the attacks of method section 4 by the name of their examples, with the settings `s`."""
    search: dict[str, Any] = {"search_steps": s.search_steps, "steps": s.adam_steps}
    penalty = {**search, "lr": s.lr_adam, "initial_const": s.initial_const}
    views: dict[str, Any] = {"eps": s.view_eps, "views": s.views}

    def carlini_wagner(confidence: float) -> Callable[..., Attack]:
        return lambda model, x, y, g: attacks.carlini_wagner_l2(model, x, y, confidence=confidence, **penalty)

    def optmargin(**settings: Any) -> Callable[..., Attack]:
        return lambda model, x, y, g: attacks.optmargin(model, x, y, generator=g, **views, **settings)

    def pgd(model: nn.Module, x: Tensor, y: Tensor, g: torch.Generator) -> Attack:
        return attacks.pgd_linf(
            model,
            x,
            y,
            eps=s.eps,
            steps=s.pgd_steps,
            step_size=s.pgd_step_size,
            restarts=s.pgd_restarts,
            generator=g,
        )

    brittle = {
        "ddn": lambda model, x, y, g: attacks.ddn_l2(model, x, y, steps=s.brittle_steps),
        "adam": carlini_wagner(0.0),
    }
    slow, strong = min(s.adam_n, s.n), min(s.strong_n, s.n)
    authors = {**search, "lr": s.authors_lr, "initial_const": s.authors_const, "distance_scale": s.distance_scale}
    return {
        "FGSM": Recipe(lambda model, x, y, g: attacks.fgsm(model, x, y, eps=s.eps), s.n, eps=s.eps),
        "PGD": Recipe(pgd, s.n, eps=s.eps),
        "OPTBRITTLE": Recipe(brittle[s.brittle_solver], s.n, solver=s.brittle_solver, confidence=0.0),
        "OPTSTRONG": Recipe(carlini_wagner(s.confidence), strong, solver="adam", confidence=s.confidence),
        "OPTMARGIN": Recipe(optmargin(solver="ddn", steps=s.ddn_steps), s.n, "ddn", "equations", eps=s.view_eps),
        "OPTMARGIN-adam": Recipe(optmargin(solver="adam", **penalty), slow, "adam", "equations", eps=s.view_eps),
        "OPTMARGIN-authors": Recipe(optmargin(variant="authors", **authors), slow, "adam", "authors", eps=s.view_eps),
    }


def attack_models(run: Run) -> dict[tuple[str, str], Examples]:
    """Attack the first images of the test set on both models and store attacks/<model>/<name>.safetensors."""
    found = {}
    for model_name in MODELS:
        model = load_model(run, model_name)
        for name, recipe in recipes(run.settings).items():
            test = evaluation_data(run, limit=recipe.n)
            stored = run.sharded(
                _path(model_name, name),
                len(test),
                images_per_shard(run, model, test.in_shape, stage=STAGE, share=8),
                _compute(run, model, test, name, recipe),
                stage=STAGE,
                what=f"{name} on {model_name}",
            )
            found[model_name, name] = _examples(run, model_name, name, stored)
    return found


def load_examples(run: Run) -> dict[tuple[str, str], Examples]:
    """Return what `attack_models` stored, by (model, name); raises MissingInput where it has not run."""
    return {
        (model, name): _examples(run, model, name, run.load(_path(model, name), made_by=STAGE))
        for model in MODELS
        for name in recipes(run.settings)
    }


def attack_table(run: Run, found: Mapping[tuple[str, str], Examples]) -> pd.DataFrame:
    """Return attacks.csv: success and distortion of every attack, with the passes it took."""
    known = recipes(run.settings)
    rows = [
        tables.AttackRow(
            examples.model,
            examples.name,
            examples.result,
            solver=known[examples.name].solver,
            variant=known[examples.name].variant,
            eps=known[examples.name].eps,
            confidence=known[examples.name].confidence,
            seconds=examples.seconds,
        )
        for examples in found.values()
    ]
    return tables.attacks(rows, pixel_max=evaluation_data(run, limit=1).pixel_max)


def _path(model: str, name: str) -> str:
    return f"attacks/{model}/{name}.safetensors"


def _compute(
    run: Run, model: nn.Module, test: ImageSet, name: str, recipe: Recipe
) -> Callable[[int, int], dict[str, Tensor]]:
    def compute(start: int, stop: int) -> dict[str, Tensor]:
        # The same generator for every shard: the views, starts and offsets of an attack are shared by all its images.
        generator = runtime.seeded(run.settings.seed, "attack", name)
        x, y = test.x[start:stop], test.y[start:stop]
        result = recipe.call(model, x, y, generator)
        entries = {field.name: getattr(result, field.name) for field in fields(result)}
        return {"index": torch.arange(start, stop), "x": x, "y": y, **entries}

    return compute


def _examples(run: Run, model: str, name: str, stored: Mapping[str, Tensor]) -> Examples:
    result = Attack(**{field.name: stored[field.name] for field in fields(Attack)})
    seconds = run.seconds(_path(model, name))
    return Examples(model, name, stored["index"], stored["x"], stored["y"], result, seconds)
