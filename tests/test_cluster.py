"""Runs on a dask scheduler, here one that lives in this process."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny_notebooks import FakeKernel, write_all

from nbsupport import cluster, job, runner, sweep
from nbsupport.cluster import NoCluster
from nbsupport.job import Job
from nbsupport.runner import StageFailed
from nbsupport.store import STAGES, RunInUse
from nbsupport.sweep import Point


def test_dask_is_asked_for_where_it_is_absent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(NoCluster, match=r'--scheduler needs dask: pip install "nbsupport\[cluster\]"'):
        cluster.connect("tcp://localhost:1")


@pytest.fixture
def planned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Job:
    monkeypatch.chdir(tmp_path)
    return job.plan("digits", "smoke", {}, folder=write_all(tmp_path / "notebooks"))


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
        with local, cluster.connect(local.scheduler_address) as client:
            yield client


@pytest.mark.slow
def test_nobody_answers() -> None:
    pytest.importorskip("distributed", reason="the extra `cluster` is not installed")
    with pytest.raises(NoCluster, match="no dask scheduler answers at nonsense://here"):
        cluster.connect("nonsense://here")


@pytest.mark.slow
def test_the_stages_run_there_in_order(planned: Job, client: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    fake, lines = FakeKernel(), list[str]()
    monkeypatch.setattr(runner, "execute_stage", fake)
    for _ in range(2):
        runner.run(planned, lines.append, execute=cluster.wait_for(cluster.submit(client, planned)))
    assert fake.calls == list(STAGES)  # the second time all is complete
    assert "stage 6/6 06_detector: complete and verified, reused" in lines


@pytest.mark.slow
def test_a_failing_stage_stops_its_run_and_no_other(
    planned: Job, client: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    other = job.plan("digits", "smoke", {"n": 7}, folder=tmp_path / "notebooks")
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
    assert all(other.open().is_complete(stage)[0] for stage in STAGES)


@pytest.mark.slow
def test_a_folder_in_use_is_refused_and_marked(planned: Job, client: Any) -> None:
    with planned.open().lock():
        with pytest.raises(RunInUse, match="is in use by process"):
            cluster.submit(client, planned)
        [point] = sweep.run([Point(planned, {})], lambda line: None, client=client)
    assert point.error is not None
