"""Stage 05: triple points, re-entries and normals around benign and adversarial images; the audit of the probe."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial

import pandas as pd
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
    return found.tensors()


def _measure(
    settings: Settings, model: nn.Module, directions: Tensor, x: Tensor, profile: Profile, start: int, stop: int
) -> dict[str, Tensor]:
    found = boundary.geometry(
        model,
        x[start:stop],
        directions,
        settings.magnitudes,
        profile.take(slice(start, stop)),
        rays=settings.geometry_rays,
        pairs=settings.triple_pairs,
        negate=settings.negate,
        generator=runtime.seeded(settings.seed, "planes"),  # the same planes for every shard, set and model
    )
    return found.tensors()
