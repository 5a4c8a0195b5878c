"""A run told in text: progress while it goes on, states, its end, and tables that fit a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from tiny_notebooks import store_something

from nbsupport import journal, store
from nbsupport.journal import Journal, Progress
from nbsupport.runner import report
from nbsupport.runner.progress import Follower, describe, duration
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


# Progress


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (9.94, "9.9 s"), (12, "12 s"), (61, "1 min 01 s"), (3600, "1 h 00 min"), (7500, "2 h 05 min")],
)
def test_durations_are_for_people(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    ("done", "rate", "text"),
    [
        (20, 4.0, "normal/FGSM                  20/100 images, 4/s, 20 s left, success 0.5"),
        (20, None, "normal/FGSM                  20/100 images, success 0.5"),
        (100, 4.0, "normal/FGSM                  100/100 images, success 0.5"),
    ],
)
def test_a_line_of_progress(done: int, rate: float | None, text: str) -> None:
    extra = {"success": 0.5, "note": "text is left out"}
    progress = Progress("03_attacks", "normal/FGSM", done, 100, "images", 0.0, 1, "here", rate, extra)
    assert describe(progress) == text


def follow(folder: Path, *, bars: bool, every: float = 1e9) -> list[str]:
    """What is echoed while a stage is at work, after an earlier one."""
    book, lines = Journal(folder), list[str]()
    book.report("02_training", "before", 1, 1)
    with Follower(folder, lines.append, bars=bars, every=every):
        book.report("03_attacks", "a", 0, 4, event="started")
        for done in (2, 4):
            book.report("03_attacks", "a", done, 4)
        book.report("03_attacks", "b", 4, 4, event="reused")
        book.report("03_attacks", "c", 0, 4, event="damaged", path="c.safetensors", why="truncated")
        book.append(stage="03_attacks", event="finished")
    return lines


def test_a_log_file_gets_a_line_for_what_is_finished(tmp_path: Path) -> None:
    first, *rest = follow(tmp_path, bars=False)
    assert first.startswith("  a                            4/4 images")
    assert rest == [
        "  b                            4 images, reused",
        "  damaged, computed again: c.safetensors (truncated)",
    ]


@pytest.mark.parametrize("bars", [True, False])
def test_a_warning_has_a_line_of_its_own(tmp_path: Path, bars: bool) -> None:
    lines: list[str] = []
    with Follower(tmp_path, lines.append, bars=bars):
        Journal(tmp_path).append(stage="03_attacks", event="warning", message="PGD on pgd: still falling: raise steps")
    assert lines == ["  warning: PGD on pgd: still falling: raise steps"]


def test_a_log_file_gets_a_line_every_few_seconds(tmp_path: Path) -> None:
    assert [line.split()[1] for line in follow(tmp_path, bars=False, every=0.0)[:3]] == ["0/4", "2/4", "4/4"]


def test_a_terminal_gets_bars(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert follow(tmp_path, bars=True)[0].split() == ["b", "4", "images,", "reused"]
    told = capsys.readouterr().err
    assert "a:" in told
    assert "4/4" in told
    assert "images/s" in told


@pytest.mark.parametrize(("lines", "columns", "bars"), [(40, 120, True), (0, 120, False), (0, 0, False)])
def test_a_terminal_without_a_size_gets_lines(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lines: int, columns: int, bars: bool
) -> None:
    main, side = pty.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))
    told: list[str] = []
    with os.fdopen(side, "w") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        with Follower(tmp_path, told.append):
            Journal(tmp_path).report("03_attacks", "a", 4, 4)
    os.close(main)
    assert (told == []) == bars


def test_half_a_line_waits_for_its_other_half(tmp_path: Path) -> None:
    lines: list[str] = []
    follower = Follower(tmp_path, lines.append, bars=False)
    with follower:
        Journal(tmp_path).report("s", "a", 4, 4)
        whole = (tmp_path / "journal.jsonl").read_bytes()
        with (tmp_path / "journal.jsonl").open("ab") as file:
            file.write(whole[:20])
            file.flush()
            follower.poll()
            file.write(whole[20:])
    assert len(lines) == 2


def test_a_journal_that_does_not_exist_yet_is_waited_for(tmp_path: Path) -> None:
    lines: list[str] = []
    with Follower(tmp_path, lines.append, bars=False) as follower:
        follower.poll()
        Journal(tmp_path).report("s", "a", 4, 4)
    assert len(lines) == 1
