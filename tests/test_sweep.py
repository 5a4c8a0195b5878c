"""A grid of runs: every combination once, failures marked, tables combined."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from tiny_notebooks import FakeKernel, write_all

from nbsupport import runner, sweep
from nbsupport.job import Job
from nbsupport.runner import StageFailed
from nbsupport.sweep import Point

GRID = """
dataset: [digits]
preset: smoke
parameters:
  n: [5, 6]
  radius: [0.1, 0.2]
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return write_all(tmp_path / "notebooks")


def read(folder: Path, text: str) -> list[Point]:
    path = folder.parent / "grid.yaml"
    path.write_text(text)
    return sweep.read(path, folder=folder)


def test_a_grid_is_the_product_of_its_lists(folder: Path) -> None:
    points = read(folder, GRID)
    assert [(point.values["n"], point.values["radius"]) for point in points] == [(5, 0.1), (5, 0.2), (6, 0.1), (6, 0.2)]
    assert all(point.values["dataset"] == "digits" for point in points)
    assert all(point.job.settings.preset == "smoke" for point in points)
    assert len({point.job.run_dir for point in points}) == 4


def test_a_grid_has_the_defaults_of_a_run(folder: Path) -> None:
    [point] = read(folder, "dataset: digits")
    assert point.job.run_dir.name == "digits-standard"
    assert dict(point.values) == {"dataset": "digits", "preset": "standard"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[1, 2", "grid.yaml is not YAML"),
        ("- digits", "expected a mapping with dataset, preset and parameters in .*grid.yaml, got list"),
        ("datasets: [digits]", "expected a key of .* did you mean 'dataset'"),
        ("parameters: [n]", "expected a mapping from names to lists under parameters, got list"),
        ("parameters: {n: []}", r"expected a value or a list of values for n, got \[\]"),
        ("parameters: {n: [[1]]}", "expected a value or a list of values for n"),
        ("dataset: {a: 1}", "expected a value or a list of values for dataset"),
        ("parameters: {radios: 1}", "did you mean 'radius'"),
        ("parameters: {n: [many]}", "expected n as int, got 'many'"),
        ("preset: [smok]", "did you mean 'smoke'"),
        ("parameters: {n: [5, '5']}", "got the same run twice: .*digits-standard-"),
    ],
)
def test_what_is_no_grid_is_refused(folder: Path, text: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read(folder, text)


def test_a_file_that_is_not_text_is_refused(folder: Path) -> None:
    (folder.parent / "grid.yaml").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="is not YAML"):
        sweep.read(folder.parent / "grid.yaml", folder=folder)


def run(points: list[Point], monkeypatch: pytest.MonkeyPatch, fail_n: int | None = None) -> list[Point]:
    fake = FakeKernel()

    def execute(job: Job, stage: str) -> None:
        if job.settings.n == fail_n and stage == "02_training":
            raise StageFailed(stage, "ValueError: no", "", "copy")
        fake(job, stage)

    monkeypatch.setattr(runner, "execute_stage", execute)
    return sweep.run(points, lambda line: None)


def test_tables_are_combined_with_the_parameters(folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    points = run(read(folder, GRID), monkeypatch)
    assert [point.error for point in points] == [None] * 4
    paths = sweep.combine(points, tmp_path / "runs" / "grid")
    assert {path.name for path in paths} >= {"03_attacks.csv", "runs.csv"}
    table = pd.read_csv(tmp_path / "runs" / "grid" / "03_attacks.csv")
    assert list(table.columns) == ["dataset", "preset", "parameter_n", "radius", "n", "share"]  # the table has an n
    assert list(table["parameter_n"]) == list(table["n"]) == [5, 5, 6, 6]
    assert list(table["radius"]) == [0.1, 0.2, 0.1, 0.2]


def test_a_failed_run_is_marked_and_the_others_go_on(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    points = run(read(folder, GRID), monkeypatch, fail_n=5)
    assert [point.error is None for point in points] == [False, False, True, True]
    sweep.combine(points, tmp_path / "combined")
    runs = pd.read_csv(tmp_path / "combined" / "runs.csv")
    assert list(runs["n"]) == [5, 5, 6, 6]
    assert runs["error"].str.contains("ValueError: no").tolist()[:2] == [True, True]
    assert runs["error"].isna().tolist()[2:] == [True, True]
    assert set(pd.read_csv(tmp_path / "combined" / "01_datasets.csv")["parameter_n"]) == {6}


def test_a_run_in_use_is_marked(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    points = read(folder, "preset: smoke")
    with points[0].job.open().lock():
        [point] = run(points, monkeypatch)
    assert point.error is not None
    assert "is in use by process" in point.error
