"""A grid of runs: every combination once, failures marked, tables combined; here and on a dask scheduler."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from tiny_notebooks import FakeKernel, write_all

from nbsupport import runner
from nbsupport.runner import Job, StageFailed, sweep
from nbsupport.runner.sweep import NoCluster, Point
from nbsupport.store import STAGES, RunInUse

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
        ("parameters: {n: []}", "expected a value or a list of values for n, got an empty list"),
        ("parameters: {n: &a [*b, *b], b: &b [1]}", "grid.yaml is not YAML"),
        ("null: 1", "expected a key of .*grid.yaml to be one of dataset, preset, parameters, got None"),
        ("parameters: {null: 1}", "expected parameter to be one of .* got 'None'"),
        ("parameters: {n: [[1]]}", "expected a value or a list of values for n, got a list or mapping inside"),
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


# On a dask scheduler, here one that lives in this process


def test_dask_is_asked_for_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(NoCluster, match=r'--scheduler needs dask: pip install "nbsupport\[cluster\]"'):
        sweep.connect("tcp://localhost:1")


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    return runner.plan("digits", "smoke", {}, folder=write_all(tmp_path / "notebooks"))


@pytest.fixture(scope="module")
def client() -> Iterator[Any]:
    distributed = pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": None}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            local = distributed.LocalCluster(**options)
        except AssertionError:  # dask gives its thread ten seconds to start, which a busy machine may exceed
            local = distributed.LocalCluster(**options)
        with local, sweep.connect(local.scheduler_address) as client:
            yield client


@pytest.mark.slow
def test_nobody_answers() -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    with pytest.raises(NoCluster, match="no dask scheduler answers at nonsense://here"):
        sweep.connect("nonsense://here")


@pytest.mark.slow
def test_the_stages_run_there_in_order(planned: Job, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, lines = FakeKernel(), list[str]()
    monkeypatch.setattr(runner, "execute_stage", fake)
    for _ in range(2):
        runner.run(planned, lines.append, execute=sweep.submit(client, planned))
    assert fake.calls == list(STAGES)  # the second time all is complete
    assert "stage 7/7 07_adaptive_attacks: complete and verified, reused" in lines


@pytest.mark.slow
def test_a_failing_stage_stops_its_run_and_no_other(
    planned: Job, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = runner.plan("digits", "smoke", {"n": 7}, folder=tmp_path / "notebooks")
    fake = FakeKernel()

    def execute(given: Job, stage: str) -> None:
        if given.settings.n != 7 and stage == "02_training":
            raise StageFailed(stage, "ValueError: no", "", "copy")
        fake(given, stage)

    monkeypatch.setattr(runner, "execute_stage", execute)
    first, second = sweep.run([Point(planned, {}), Point(other, {})], lambda line: None, client=client)
    assert first.error is not None
    assert "stage 02_training failed: ValueError: no" in first.error
    assert second.error is None
    assert fake.calls.count("03_attacks") == 1
    assert all(other.open().state(stage).name == "complete" for stage in STAGES)


@pytest.mark.slow
def test_a_folder_in_use_is_refused_and_marked(planned: Job, client: Any) -> None:
    with planned.open().lock():
        with pytest.raises(RunInUse, match="is in use by process"):
            runner.run(planned, lambda line: None, execute=sweep.submit(client, planned))
        [point] = sweep.run([Point(planned, {})], lambda line: None, client=client)
    assert point.error is not None
