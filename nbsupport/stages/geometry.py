"""Stage 05: triple points, re-entries and normals around benign and adversarial images; the audit of the probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from nbsupport import boundary, runtime, tables_geometry
from nbsupport.boundary import Audit, Profile
from nbsupport.presets import Settings
from nbsupport.stages.boundary import BENIGN, STAGE, probed, run_directions
from nbsupport.stages.inputs import load_model
from nbsupport.store import Run
from nbsupport.tables_geometry import GeometryRow

_EXAMPLES = (BENIGN, "OPTBRITTLE", "OPTMARGIN")
_IMAGES = 4  # of one shard: planes take tens of thousands of passes an image


def measure_geometry(
    run: Run, found: Mapping[tuple[str, str], tuple[Tensor, Profile]]
) -> dict[tuple[str, str], GeometryRow]:
    """Look at the boundary around the first images of three sets; store geometry/<model>/<examples>.safetensors.

    Parameters
    ----------
    found : mapping
        What `probe_examples` returned; a set that is not in it is left out.
    """
    settings, measured = run.settings, {}
    chosen = {key: entry for key, entry in found.items() if key[1] in _EXAMPLES}
    for model, examples, x, profile in probed(run, chosen):
        directions = run_directions(settings, tuple(x.shape[1:]))
        stored = run.sharded(
            f"geometry/{model}/{examples}.safetensors",
            min(len(x), settings.geometry_n),
            _IMAGES,
            partial(_measure, settings, load_model(run, model), directions, x, profile),
            stage=STAGE,
            what=f"geometry around {examples}, {model}",
        )
        measured[model, examples] = GeometryRow(model, examples, **stored)
    return measured


def geometry_table(measured: Mapping[tuple[str, str], GeometryRow]) -> pd.DataFrame:
    """Return geometry.csv: triple points, re-entries and angles around every set that was measured."""
    return tables_geometry.geometry(measured.values())


def audit_table(run: Run, found: Mapping[tuple[str, str], tuple[Tensor, Profile]]) -> pd.DataFrame:
    """Visit a sample of the rays of every profile in full; store audit/<model>/<examples>, return audit.csv."""
    return tables_geometry.audit(_audits(run, found))


def _audits(run: Run, found: Mapping[tuple[str, str], tuple[Tensor, Profile]]) -> Iterable[tuple[str, str, Audit]]:
    settings = run.settings
    for model, examples, x, profile in probed(run, found):
        rays = min(settings.audit_rays, profile.distance.numel())
        directions = run_directions(settings, tuple(x.shape[1:]))
        stored = run.sharded(
            f"audit/{model}/{examples}.safetensors",
            rays,
            rays,
            partial(_audit, settings, load_model(run, model), directions, x, profile),
            stage=STAGE,
            what=f"audit of {examples}, {model}",
            unit="rays",
        )
        yield model, examples, Audit(**stored)


def _audit(
    settings: Settings, model: nn.Module, directions: Tensor, x: Tensor, profile: Profile, start: int, stop: int
) -> dict[str, Tensor]:
    generator = runtime.seeded(settings.seed, "audit")
    found = boundary.audit(model, x, directions, settings.magnitudes, profile, rays=stop - start, generator=generator)
    return {field.name: getattr(found, field.name) for field in fields(found)}


def _measure(
    settings: Settings, model: nn.Module, directions: Tensor, x: Tensor, profile: Profile, start: int, stop: int
) -> dict[str, Tensor]:
    x, magnitudes = x[start:stop], settings.magnitudes
    orthogonal = directions[: len(directions) // 2] if settings.negate else directions
    triple = boundary.triple_points(
        model,
        x,
        orthogonal,
        reach=magnitudes[-1],
        pairs=min(settings.triple_pairs, len(orthogonal) * (len(orthogonal) - 1) // 2),
        generator=runtime.seeded(settings.seed, "planes"),  # the same planes for every shard, set and model
    )
    rays = directions[: settings.geometry_rays]
    near = Profile(
        profile.center[start:stop],
        *(entry[start:stop, : len(rays)] for entry in (profile.distance, profile.adjacent, profile.reached)),
    )
    again = boundary.reentry(model, x, rays, magnitudes, near)
    angle = torch.full(near.reached.shape, torch.nan, dtype=torch.float64)
    angle[near.reached] = boundary.normals(model, x, rays, near).angle.cpu()
    return {"triple": triple, "reached": near.reached, "returned": again.returned, "angle": angle}
