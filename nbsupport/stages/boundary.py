"""Stage 05: the decision boundary around benign images and around every attack's successes."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import fields
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from nbsupport import boundary, runtime, tables
from nbsupport.boundary import Profile
from nbsupport.presets import Settings
from nbsupport.stages.attacks import load_examples
from nbsupport.stages.inputs import MODELS, evaluation_data, images_per_shard, load_model
from nbsupport.store import Run

STAGE = "05_boundary_analysis"
BENIGN = "benign"


def run_directions(settings: Settings, in_shape: tuple[int, ...]) -> Tensor:
    """Return the run's directions (K, D), the same for all images and both models."""
    dim = math.prod(in_shape)
    count = min(dim, 1000) if settings.directions is None else settings.directions
    generator = runtime.seeded(settings.seed, "directions")
    return boundary.directions(dim, count, negate=settings.negate, generator=generator)


def probe_examples(run: Run) -> dict[tuple[str, str], tuple[Tensor, Profile]]:
    """Probe correctly classified benign images and successful examples; store boundary/<model>/<examples>.

    Returns
    -------
    dict
        By (model, examples): the positions (N,) of the images in the test set, and their profile.
    """
    settings, found = run.settings, {}
    for model_name in MODELS:
        model = load_model(run, model_name)
        for examples, index, x in _inputs(run, model_name, model):
            in_shape = tuple(x.shape[1:])
            stored = run.sharded(
                _path(model_name, examples),
                len(x),
                images_per_shard(run, model, in_shape, stage=STAGE, share=16),
                partial(_probe, settings, model, run_directions(settings, in_shape), index, x),
                stage=STAGE,
                what=f"boundary around {examples}, {model_name}",
            )
            found[model_name, examples] = _profile(stored)
    return found


def _probe(
    settings: Settings, model: nn.Module, directions: Tensor, index: Tensor, x: Tensor, start: int, stop: int
) -> dict[str, Tensor]:
    profile = boundary.probe(model, x[start:stop], directions, settings.magnitudes)
    return {"index": index[start:stop], **{f.name: getattr(profile, f.name) for f in fields(profile)}}


def load_profiles(run: Run) -> dict[tuple[str, str], tuple[Tensor, Profile]]:
    """Return what `probe_examples` stored; a set of examples without a success is absent."""
    found, first = load_examples(run), run.settings.boundary_n
    probed = [(model, BENIGN) for model in MODELS if bool(found[model, "FGSM"].result.correct[:first].any())]
    probed += [key for key, examples in found.items() if bool(examples.result.success.any())]
    return {key: _profile(run.load(_path(*key), made_by=STAGE)) for key in probed}


def probed(
    run: Run, found: Mapping[tuple[str, str], tuple[Tensor, Profile]]
) -> Iterator[tuple[str, str, Tensor, Profile]]:
    """Yield the model, the examples, the images (N, C, H, W) and their profile, for every set in `found`."""
    test = evaluation_data(run, limit=min(run.settings.n, run.settings.boundary_n))
    attacked = load_examples(run)
    for (model, name), (index, profile) in found.items():
        if name == BENIGN:
            yield model, name, test.x[index], profile
        else:
            examples = attacked[model, name]
            yield model, name, examples.result.x_adv[torch.searchsorted(examples.index, index)], profile


def boundary_table(run: Run, found: Mapping[tuple[str, str], tuple[Tensor, Profile]]) -> pd.DataFrame:
    """Return boundary.csv: distances and purities around every set of examples."""
    test = evaluation_data(run, limit=1)
    rows = [tables.BoundaryRow(model, examples, profile) for (model, examples), (_, profile) in found.items()]
    return tables.boundary(rows, num_classes=test.num_classes, pixel_max=test.pixel_max)


def _inputs(run: Run, model_name: str, model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor]]:
    """Yield the name of every set of examples, the positions and the images to probe; empty sets are left out."""
    settings = run.settings
    test = evaluation_data(run, limit=min(settings.n, settings.boundary_n))
    correct = (runtime.predict(model, test.x).cpu() == test.y).nonzero().squeeze(1)
    if len(correct):
        yield BENIGN, correct, test.x[correct]
    for (of, name), found in load_examples(run).items():
        successes = found.result.success.nonzero().squeeze(1)[: settings.boundary_n]
        if of == model_name and len(successes):
            yield name, found.index[successes], found.result.x_adv[successes]


def _path(model: str, examples: str) -> str:
    return f"boundary/{model}/{examples}.safetensors"


def _profile(stored: Mapping[str, Tensor]) -> tuple[Tensor, Profile]:
    return stored["index"], Profile(**{field.name: stored[field.name] for field in fields(Profile)})
