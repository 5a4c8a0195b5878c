"""Other regions and votes of stage 04, in one smoke run of all notebooks."""

from __future__ import annotations

import math

import pandas as pd
import pytest

from nbsupport import region, runtime, stages
from nbsupport.intervals import wilson
from nbsupport.store import Run

pytestmark = pytest.mark.slow

EXAMPLES = ("benign", "OPTBRITTLE", "OPTMARGIN")
RATES = [f"{examples}_accuracy{end}" for examples in EXAMPLES for end in ("", "_low", "_high")]


@pytest.fixture(scope="module")
def table(smoke: Run) -> pd.DataFrame:
    return pd.read_csv(smoke.path("tables", "region_other.csv"))


def test_one_thing_differs_from_the_published_vote(smoke: Run, table: pd.DataFrame) -> None:
    assert list(table.columns) == ["shape", "combine", "radius", "n", *RATES]
    variants = list(zip(table["shape"], table["combine"], strict=True))
    assert variants[0] == ("hypercube", "plurality")
    assert len(set(variants)) == len(variants) == 5
    assert all((shape == "hypercube") != (combine == "plurality") for shape, combine in variants[1:])
    rms = smoke.settings.radius / math.sqrt(3)
    radii = {"hypercube": smoke.settings.radius, "ball": rms * math.sqrt(66 / 64), "gaussian": rms}
    assert table["radius"].tolist() == pytest.approx([radii[shape] for shape in table["shape"]])


def test_the_first_row_counts_the_stored_votes(smoke: Run, table: pd.DataFrame) -> None:
    votes = stages.load_votes(smoke)
    attacked = votes["normal", "OPTBRITTLE"].counted
    n = len(attacked)
    for examples in EXAMPLES:
        found = votes["normal", examples]
        right = (found.vote.label[:n] == found.y[:n])[attacked]
        rate = wilson(int(right.sum()), len(right))
        row = table.iloc[0][["n", *(f"{examples}_accuracy{end}" for end in ("", "_low", "_high"))]]
        assert row.tolist() == pytest.approx([rate.n, rate.value, rate.low, rate.high])


def test_every_row_is_what_classify_says(smoke: Run, table: pd.DataFrame) -> None:
    s, model = smoke.settings, stages.load_model(smoke, "normal")
    attacked = stages.load_examples(smoke)["normal", "OPTMARGIN"]
    correct = attacked.result.correct
    for row in table.itertuples():
        draws = {"samples": s.samples, "generator": runtime.seeded(s.seed, "region")}
        label = region.classify(
            model,
            attacked.result.x_adv,
            radius=row.radius,  # digits: pixel_max is 1
            shape=row.shape,
            combine=row.combine,
            **draws,
        ).label
        assert row.n == int(correct.sum())
        assert (label == attacked.y)[correct].double().mean().item() == pytest.approx(row.OPTMARGIN_accuracy)


def test_what_was_stored_is_read_again(smoke: Run, table: pd.DataFrame, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(region, "classify")
    pd.testing.assert_frame_equal(stages.other_regions_table(smoke), table)
