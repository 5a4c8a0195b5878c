from __future__ import annotations

import io

import numpy as np
import pytest
import torch

from nbsupport import intervals, plots
from nbsupport.boundary import Trace

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


def test_margins_and_looks_are_drawn_in_the_data_set_s_units() -> None:
    t, margin = torch.tensor([0.0, 0.1, 0.2, 0.3]), torch.tensor([2.0, 1.0, 0.5, -1.0])
    fig = plots.margins({"benign": Trace(t, margin, torch.tensor([0, 2, 3]))}, pixel_max=255)
    (ax,) = fig.axes
    _, everywhere, looked = ax.lines
    assert list(everywhere.get_xdata()) == pytest.approx([0, 25.5, 51, 76.5])
    assert list(everywhere.get_ydata()) == [2, 1, 0.5, -1]
    assert list(looked.get_xdata()) == pytest.approx([0, 51, 76.5])
    assert [text.get_text() for text in ax.texts] == ["0", "1", "2"]
    assert ax.get_title() == "benign: 2 looks"
    fig.savefig(io.BytesIO())


def test_margins_refuses_nothing() -> None:
    with pytest.raises(ValueError, match="expected at least one entry in traces, got none"):
        plots.margins({})
