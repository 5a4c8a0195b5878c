"""Which of the stored attacks show signs of having failed for reasons of their own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace

import pandas as pd
from torch import Tensor, nn

from nbsupport import attacks, runtime
from nbsupport.attacks import Attack
from nbsupport.attacks.optmargin import draw_views
from nbsupport.stages.attacks import STAGE, Examples, recipes
from nbsupport.stages.inputs import load_model
from nbsupport.store import Run

COLUMNS = ("model", "attack", "indicator", "share", "n", "what_to_do")
_IMAGES = 32  # of each attack
_BUDGETS = (0.5, 2.0)  # of PGD, in budgets of the run


def attack_warnings(run: Run, found: Mapping[tuple[str, str], Examples]) -> pd.DataFrame:
    """Return one row for each sign of failure that an attack shows on its first 32 images, columns `COLUMNS`.

    The signs are those of `attacks.failure_indicators`; PGD is run again with half and twice its budget, steps scaled
    alike. Every row is also reported to the run's journal, as an event "warning".
    """
    known = recipes(run.settings)
    models = {model: load_model(run, model) for model, _ in found}
    rows = []
    for (model, name), examples in found.items():
        x, y = examples.x[:_IMAGES], examples.y[:_IMAGES]
        for sign in attacks.failure_indicators(
            models[model],
            x,
            y,
            _first(examples.result),
            eps=known[name].eps if known[name].solver is None else None,  # else it is the size of a view
            by_eps=_other_budgets(run, models[model], x, y) if name == "PGD" else None,
            views=_views(run, name, tuple(x.shape[1:])) if known[name].variant else None,
            clip_views=known[name].variant != "authors",
            generator=runtime.seeded(run.settings.seed, "indicators"),
        ):
            rows.append((model, name, sign.name, sign.share, sign.n, sign.message))
            run.journal.append(stage=STAGE, event="warning", message=f"{name} on {model}: {sign.name}: {sign.message}")
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _first(attack: Attack) -> Attack:
    return Attack(**{field.name: getattr(attack, field.name)[:_IMAGES] for field in fields(Attack)})


def _views(run: Run, name: str, in_shape: tuple[int, ...]) -> Tensor:
    """Return the views of the run's OPTMARGIN attack `name`, which are its first draw."""
    s = run.settings
    return draw_views(in_shape, eps=s.view_eps, views=s.views, generator=runtime.seeded(s.seed, "attack", name))


def _other_budgets(run: Run, model: nn.Module, x: Tensor, y: Tensor) -> dict[float, Attack]:
    s, found = run.settings, {}
    for factor in _BUDGETS:
        scaled = replace(s, eps=factor * s.eps, pgd_step_size=factor * s.pgd_step_size)
        generator = runtime.seeded(s.seed, "attack", "PGD")  # the same random start as the run's
        found[scaled.eps] = recipes(scaled)["PGD"].call(model, x, y, generator)
    return found
