"""Stage 04: the vote over the hypercube, for benign images and for every attack's examples."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, fields
from functools import partial

import pandas as pd
import torch
from torch import Tensor, nn

from nbsupport import region, runtime, tables
from nbsupport.presets import Settings
from nbsupport.region import Vote
from nbsupport.stages.attacks import load_examples, recipes
from nbsupport.stages.inputs import MODELS, evaluation_data, images_per_shard, load_model
from nbsupport.store import Run

STAGE = "04_region_classification"


@dataclass(frozen=True, eq=False)
class Votes:
    """The point label and the vote of one set of examples, one entry an image.

    `counted` (N,) bool: the images that the region table is about, all benign ones and all that were attacked.
    """

    model: str
    examples: str
    index: Tensor
    y: Tensor
    counted: Tensor
    point: Tensor
    vote: Vote


def vote_examples(run: Run) -> dict[tuple[str, str], Votes]:
    """Vote on benign images and on every attack's, with both models, and store region/<model>/<examples>."""
    settings, found = run.settings, {}
    for model_name in MODELS:
        model = load_model(run, model_name)
        for examples, entries in _inputs(run, model_name):
            in_shape = tuple(entries["x"].shape[1:])
            stored = run.sharded(
                _path(model_name, examples),
                len(entries["x"]),
                images_per_shard(run, model, in_shape, stage=STAGE, share=2),
                partial(_vote, settings, model, entries),
                stage=STAGE,
                what=f"vote on {examples}, {model_name}",
            )
            found[model_name, examples] = _votes(model_name, examples, stored)
    return found


def _vote(
    settings: Settings, model: nn.Module, entries: Mapping[str, Tensor], start: int, stop: int
) -> dict[str, Tensor]:
    shard = {name: tensor[start:stop] for name, tensor in entries.items()}
    x = shard.pop("x")
    # The same generator for every shard: all images share the points of the hypercube.
    generator = runtime.seeded(settings.seed, "region")
    vote = region.classify(model, x, radius=settings.radius, samples=settings.samples, generator=generator)
    return {**shard, "point": runtime.predict(model, x), **{f.name: getattr(vote, f.name) for f in fields(vote)}}


def load_votes(run: Run) -> dict[tuple[str, str], Votes]:
    """Return what `vote_examples` stored, by (model, examples); raises MissingInput where it has not run."""
    names = ["benign", *recipes(run.settings)]
    return {
        (model, name): _votes(model, name, run.load(_path(model, name), made_by=STAGE))
        for model in MODELS
        for name in names
    }


def region_table(run: Run, found: Mapping[tuple[str, str], Votes]) -> pd.DataFrame:
    """Return region.csv: the accuracy of the point and of the region classifier."""
    rows = [
        tables.RegionRow(
            votes.model,
            votes.examples,
            votes.y,
            votes.point,
            votes.vote.label,
            run.settings.radius,
            run.settings.samples,
            counted=votes.counted,
        )
        for votes in found.values()
    ]
    return tables.region(rows, pixel_max=evaluation_data(run, limit=1).pixel_max)


def _inputs(run: Run, model: str) -> Iterator[tuple[str, dict[str, Tensor]]]:
    test = evaluation_data(run, limit=max(run.settings.n, run.settings.region_n))
    everything = torch.ones(len(test), dtype=torch.bool)
    yield "benign", {"index": torch.arange(len(test)), "x": test.x, "y": test.y, "counted": everything}
    for (of, name), found in load_examples(run).items():
        if of == model:
            counted = found.result.correct
            yield name, {"index": found.index, "x": found.result.x_adv, "y": found.y, "counted": counted}


def _path(model: str, examples: str) -> str:
    return f"region/{model}/{examples}.safetensors"


def _votes(model: str, examples: str, stored: Mapping[str, Tensor]) -> Votes:
    vote = Vote(**{field.name: stored[field.name] for field in fields(Vote)})
    return Votes(model, examples, stored["index"], stored["y"], stored["counted"], stored["point"], vote)
