"""What evading the vote costs, and which attack came nearest: curves, tables and the figure."""

import pandas as pd
import pytest

from nbsupport import plots, presets, region, runtime, stages
from nbsupport.stages.evasion import curves

ROWS = [
    ("number of views", "1", 0.05, 0.9),
    ("number of views", "20", 0.07, 0.4),
    ("confidence", "0", 0.07, 0.4),
    ("confidence", "6", float("nan"), 1.0),
    ("published", "OPTMARGIN (ddn, equations)", 0.07, 0.4),
]


def table():
    columns = ["curve", "demand", "mean_rms", "region_accuracy"]
    frame = pd.DataFrame(ROWS, columns=columns).assign(n=24)
    low, high = frame.region_accuracy - 0.1, frame.region_accuracy + 0.1
    return frame.assign(region_low=low.clip(lower=0), region_high=high.clip(upper=1))


@pytest.mark.parametrize("dataset", ["digits", "mnist", "cifar10"])
def test_curves_meet_in_the_published_demand_and_each_lets_one_part_grow(dataset):
    s = presets.settings(dataset)
    found = curves(s, (1, 28, 28))
    published = set.intersection(*map(set, found.values()))
    assert [(d.views, d.size, d.confidence) for d in published] == [(s.views, s.view_eps, 0.0)]
    for demands in found.values():
        parts = zip(*((d.views, d.size, d.confidence) for d in demands), strict=True)
        grows = [part for part in parts if len(set(part)) > 1]
        assert len(grows) == 1
        assert list(grows[0]) == sorted(set(grows[0]))


def test_no_more_views_are_asked_for_than_there_are_orthogonal_ones():
    found = curves(presets.settings("digits", overrides={"views": 5}), (1, 2, 2))
    assert max(d.views for d in found["number of views"]) == 5


def test_every_panel_shows_its_curve_and_all_published_settings():
    figure = plots.evasion_cost(table())
    assert [ax.get_title() for ax in figure.axes] == ["number of views", "confidence"]
    for ax, reached in zip(figure.axes, (2, 1), strict=True):
        assert len(ax.texts) == reached  # a demand without a success has no distortion to stand at
        assert len(ax.containers) == 2
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["OPTMARGIN (ddn, equations), n=24"]
    curve = figure.axes[0].containers[0].lines[0]
    assert curve.get_xdata().tolist() == [0.05, 0.07]
    assert curve.get_ydata().tolist() == [0.9, 0.4]


def test_a_figure_without_its_columns_is_refused():
    with pytest.raises(ValueError, match="region_low"):
        plots.evasion_cost(table().drop(columns="region_low"))


@pytest.mark.slow
def test_the_published_rows_are_the_stored_attacks_against_the_vote(smoke):
    found, s = stages.load_examples(smoke), smoke.settings
    stored = pd.read_csv(smoke.path("tables", "evasion.csv"))
    rows = stored[stored.curve == "published"].set_index("demand")
    assert len(rows) == 3
    examples = found["normal", "OPTMARGIN-authors"]
    n = min(s.cost_n, len(examples.index))
    correct, success = examples.result.correct[:n], examples.result.success[:n]
    vote = region.classify(
        stages.load_model(smoke, "normal"),
        examples.result.x_adv[:n],
        radius=s.radius,
        samples=s.samples,
        generator=runtime.seeded(s.seed, "region"),
    )
    row = rows.loc["OPTMARGIN-authors (adam, authors)"]
    assert row.n == int(correct.sum())
    assert row.mean_rms == pytest.approx(examples.result.rms[:n][success].mean().item())
    assert row.region_accuracy == pytest.approx((vote.label == examples.y[:n])[correct].float().mean().item())


@pytest.mark.slow
def test_the_curves_pass_through_the_stored_optmargin(smoke):
    stored = pd.read_csv(smoke.path("tables", "evasion.csv"))
    through = stored[stored.demand.isin(["20", "20.0"]) & (stored.curve == "number of views")].iloc[0]
    published = stored[stored.demand == "OPTMARGIN (ddn, equations)"].iloc[0]
    assert through.mean_rms == pytest.approx(published.mean_rms, rel=1e-3)
    assert through.region_accuracy == published.region_accuracy


@pytest.mark.slow
def test_more_views_or_confidence_never_cost_less(smoke):
    stored = pd.read_csv(smoke.path("tables", "evasion.csv"))
    for name in ("number of views", "confidence"):
        rms = stored[(stored.curve == name) & (stored.success_rate == 1)].mean_rms
        assert rms.is_monotonic_increasing
        assert len(rms) > 1


@pytest.mark.slow
def test_the_best_of_all_attacks_is_no_further_than_any(smoke):
    table = stages.nearest_table(smoke, stages.load_examples(smoke))
    measured = table[table.n > 0]
    assert "normal" in set(measured.model)
    for _, part in measured.groupby("model"):
        best = part[part.attack == "best of all"].iloc[0]
        assert best.success_rate == part.success_rate.max()
        assert best.mean_excess == pytest.approx(0, abs=1e-6)
        assert (part.mean_excess.dropna() >= 0).all()
        assert part[part.attack != "best of all"].nearest_share.sum() >= best.success_rate
