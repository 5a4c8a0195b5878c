"""A run told in text: states, progress, tables that fit a terminal."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_notebooks import store_something

from nbsupport import journal, report, store
from nbsupport.store import STAGES, Run


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return store.open_run(tmp_path / "run", dataset="digits", preset="smoke", overrides={"n": 7})


def states(run: Run) -> dict[str, str]:
    lines = report.status(run).splitlines()
    return {line[:26].strip(): line[26:] for line in lines if line[:26].strip() in STAGES}


def test_a_new_run_is_missing_everything(run: Run) -> None:
    text = report.status(run)
    assert f"run folder  {run.dir}" in text
    assert "digits, smoke, with n=7" in text
    assert "in use by   nobody" in text
    assert states(run) == dict.fromkeys(STAGES, "missing")


def test_every_state_is_told_apart(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for stage in STAGES[:3]:
        store_something(run, stage)
    run.path("tables/02_training.csv").write_text("")
    run.journal.append(stage="04_region_classification", event="failed", error="ValueError: no")
    run.journal.report("05_boundary_analysis", "a", 1, 4)
    monkeypatch.setattr(journal.os, "getpid", lambda: 2**22 + 1)  # a process that is gone
    run.journal.report("05_boundary_analysis", "a", 2, 4)
    told = states(run)
    assert told["01_datasets"].startswith("complete, ")
    assert told["02_training"] == "damaged: tables/02_training.csv"
    assert told["03_attacks"].startswith("complete")
    assert told["04_region_classification"] == "failed: ValueError: no"
    assert told["05_boundary_analysis"] == "interrupted"
    assert told["06_detector"] == "missing"


def test_work_under_way_is_told_with_what_it_reported(run: Run) -> None:
    run.journal.report("03_attacks", "normal/FGSM", 0, 100, event="started")
    run.journal.report("03_attacks", "normal/FGSM", 20, 100, success=0.5, median_rms=0.125)
    with run.lock():
        text = report.status(run)
    assert states(run)["03_attacks"] == "under way"
    assert f"in use by   process {os.getpid()} on " in text
    [line] = [line for line in text.splitlines() if "normal/FGSM" in line]
    assert "20/100 images, " in line
    assert line.endswith("left, success 0.5, median rms 0.125")


def test_a_finished_stage_is_not_under_way(run: Run) -> None:
    store_something(run, "01_datasets")
    with run.lock():
        assert states(run)["01_datasets"].startswith("complete")


def test_the_results_name_tables_figures_seconds_and_what_next(run: Run) -> None:
    for stage in STAGES[:2]:
        store_something(run, stage)
    run.write_table("left_by_a_failed_attempt", pd.DataFrame({"n": [1]}))
    text = report.results(run)
    assert "tables/01_datasets.csv\nn share\n7 0.333" in text
    assert "left_by_a_failed_attempt" not in text
    assert str(run.path("figures/02_training.png")) in text
    assert "jupyter lab" in text
    assert f"python -m nbsupport status {run.dir}" in text


def test_tables_keep_to_their_key_columns_and_the_width(tmp_path: Path) -> None:
    columns = ["model", "attack", "solver", "variant", "eps_or_confidence", "n", "n_misclassified", "success_rate"]
    columns += ["success_rate_low", "success_rate_high", "mean_rms", "median_rms", "forwards_per_image"]
    columns += ["backwards_per_image", "seconds"]
    row = ["normal", "OPTMARGIN-authors", "adam", "equations", 0.15, 100, 3, 1 / 3, 0.2, np.nan, *[1234.567] * 5]
    path = tmp_path / "attacks.csv"
    pd.DataFrame([row], columns=columns).to_csv(path, index=False)
    header, line = report.table_text(path).splitlines()
    assert len(header) <= report.WIDTH
    assert "n_misclassified" not in header
    assert header.split()[-1] == "seconds"
    assert line.split() == [
        *("normal", "OPTMARGIN-authors", "adam", "equations", "0.15", "100", "0.333", "0.2"),
        *["1235"] * 4,
    ]


def test_a_table_without_rows_says_so(tmp_path: Path) -> None:
    pd.DataFrame(columns=["model", "attack"]).to_csv(tmp_path / "warnings.csv", index=False)
    assert report.table_text(tmp_path / "warnings.csv") == "no rows"


def test_long_tables_and_texts_are_cut_and_say_so() -> None:
    frame = pd.DataFrame(
        {"statement": ["x" * 50] * 40, "holds": [True] * 40, **{f"c{i}": ["y" * 30] * 40 for i in range(9)}}
    )
    lines = report.frame_text(frame, rest="claims.csv").splitlines()
    assert lines[-1] == "... 10 more rows in claims.csv"
    assert max(map(len, lines)) <= report.WIDTH
    assert "x" * 39 + "…" in lines[1]
    assert "True" in lines[1]


def test_numbers_are_rounded_and_unmeasured_ones_left_out() -> None:
    frame = pd.DataFrame({"value": [2.0, 0.12345, 1234.5, np.inf, -np.inf, np.nan]})
    assert report.frame_text(frame).split() == ["value", "2", "0.123", "1234", "inf", "-inf"]
