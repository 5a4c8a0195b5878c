"""The claims of the talk against everything that a run has measured."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd
import torch

from nbsupport import claims, tables
from nbsupport.boundary import purity
from nbsupport.claims import Measured, aligned
from nbsupport.stages.attacks import load_examples
from nbsupport.stages.boundary import load_profiles
from nbsupport.stages.inputs import evaluation_data
from nbsupport.stages.region import load_votes
from nbsupport.store import Run


def claims_table(run: Run, detectors: Sequence[tables.DetectorRow]) -> pd.DataFrame:
    """Return claims.csv: a verdict on each claim of method section 8, for every model and set of examples."""
    return claims.table(_measured(run), detectors, pixel_max=evaluation_data(run, limit=1).pixel_max)


def _measured(run: Run) -> Iterator[Measured]:
    num_classes = evaluation_data(run, limit=1).num_classes
    examples, profiles = load_examples(run), load_profiles(run)
    for key, votes in load_votes(run).items():
        attacked = examples.get(key)
        position, medians, purities = torch.empty(0), torch.empty(0), torch.empty(0)
        if key in profiles:
            position, profile = profiles[key]
            medians = torch.as_tensor(tables.ray_medians(profile))
            purities = purity(profile, num_classes=num_classes, top=1)[:, 0]
        yield Measured(
            *key,
            index=votes.index,
            y=votes.y,
            correct=votes.point == votes.y if attacked is None else attacked.result.correct,
            success=None if attacked is None else attacked.result.success,
            rms=None if attacked is None else attacked.result.rms,
            point=votes.point,
            vote=votes.vote.label,
            median_distance=aligned(votes.index, position, medians),
            purity_1=aligned(votes.index, position, purities),
        )
