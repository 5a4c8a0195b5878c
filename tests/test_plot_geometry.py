from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from nbsupport import intervals, plots

CELLS = {
    "normal": {"OPTMARGIN": torch.tensor([[1, 3], [0, 2], [4, 4]]), "benign": torch.tensor([[0, 0], [1, 0]])},
    "pgd": {"benign": torch.zeros(3, 2, dtype=torch.int64)},
}


def test_images_means_and_intervals_are_drawn() -> None:
    fig = plots.triple_cells(CELLS)
    normal, pgd = fig.axes
    assert [label.get_text() for label in normal.get_yticklabels()] == ["benign\nn=2", "OPTMARGIN\nn=3"]
    assert [label.get_text() for label in pgd.get_yticklabels()] == ["benign\nn=3", "OPTMARGIN\nn=0"]
    *_, points, bar, circle = normal.lines
    assert sorted(points.get_xdata()) == [1, 2, 4]
    assert np.all(np.abs(np.asarray(points.get_ydata()) - 1) < 0.3)
    mean = intervals.mean([1, 2, 4])
    assert list(bar.get_xdata()) == pytest.approx([max(mean.low, 0), mean.high])
    assert list(circle.get_xdata()) == [pytest.approx(7 / 3)]
    assert len(pgd.lines) == 2  # all images alike: points and circle without an interval
    fig.savefig(io.BytesIO())


@pytest.mark.parametrize("by_name", [{}, {"benign": np.empty((0, 4))}])
def test_a_set_without_images_has_its_row(by_name: dict[str, np.ndarray]) -> None:
    fig = plots.triple_cells({"normal": by_name, "pgd": by_name})
    assert all(len(ax.lines) == 0 for ax in fig.axes)
    fig.savefig(io.BytesIO())


@pytest.mark.parametrize(
    ("cells", "message"),
    [
        ({}, "expected at least one entry in cells, got none"),
        ({"normal": {"benign": [1, 2]}}, r"expected cells of benign of shape \(N, P\), got \(2,\)"),
    ],
)
def test_triple_cells_refuses(cells: dict[str, dict[str, list[int]]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        plots.triple_cells(cells)
