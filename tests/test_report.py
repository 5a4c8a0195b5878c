"""A run told in text: progress while it goes on, states, its end, and tables that fit a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from tiny_notebooks import store_something

from nbsupport import claims, store
from nbsupport.runner import report
from nbsupport.runner.report import Follower, describe, duration
from nbsupport.store import STAGES, Run, journal
from nbsupport.store.journal import Journal, Progress


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


# The end of a run

EXAMPLES = ("FGSM", "PGD", "OPTBRITTLE", "OPTSTRONG", "OPTMARGIN", "OPTMARGIN-adam", "OPTMARGIN-authors")
MODELS = ("normal", "pgd")
NAMES = {"h": "holds", "u": "undecided", "f": "fails"}
WORDS = list(claims.CLAIMS.items())


def store_tables(run: Run, **tables: pd.DataFrame) -> None:
    """Store `tables` as one stage of the run."""
    run.finish("06_detector", tables=tables)


def main_tables() -> dict[str, pd.DataFrame]:
    attacks = [
        {"model": model, "attack": name, "n": 99, "success_rate": 0.984, "success_rate_low": 0.969}
        | {"success_rate_high": 0.992, "mean_rms": 0.0349}
        for model in MODELS
        for name in EXAMPLES
    ]
    region = [
        {"model": model, "examples": name, "n": 500 if name == "benign" else 99, "point_accuracy": 0.1}
        | {"region_accuracy": 0.05, "region_low": 0.022, "region_high": 0.113}
        for model in MODELS
        for name in ("benign", *EXAMPLES, "noise")
    ]
    boundary = [
        {"model": model, "examples": name, "n": 12, "median_distance": np.inf if name == "FGSM" else 0.35}
        for model in MODELS
        for name in ("benign", *EXAMPLES[:-1])
    ]
    return {"attacks": pd.DataFrame(attacks), "region": pd.DataFrame(region), "boundary": pd.DataFrame(boundary)}


def rows_of(claim: int, verdicts: dict[str, str], **values: Any) -> list[dict[str, Any]]:
    """Rows of a claim about `normal`: `verdicts` by examples."""
    common = {"claim": claim, "model": "normal", "statement": "a statement", "statistic": 0.99, "threshold": 0.95}
    common |= {"low": 0.951, "high": 1.0, "n": 99, "decides": "by_construction" not in values}
    rows = [{**common, "examples": examples, "verdict": verdict} for examples, verdict in verdicts.items()]
    return [{**row, "verdict_holm": row["verdict"], **values} for row in rows]


def claim_line(run: Run, rows: list[dict[str, Any]]) -> str:
    store_tables(run, claims=pd.DataFrame(rows, columns=claims.COLUMNS))
    return report.results(run).splitlines()[1]


def test_the_end_of_a_run_fits_a_screen(run: Run) -> None:
    names = [NAMES[letter] for letter in "hhhhuuf"]
    rows = [row for claim in claims.CLAIMS for row in rows_of(claim, dict(zip(EXAMPLES, names, strict=True)))]
    rows += [row for claim in (2, 6, 7) for row in rows_of(claim, {"a": "holds"}, by_construction="a reason")]
    frame = pd.DataFrame(rows, columns=claims.COLUMNS)
    kinds = ["still falling", "constant at its bound", "stuck pixels", "random beats gradient"]
    warnings = [
        {
            "model": "normal",
            "attack": name,
            "indicator": kind,
            "share": 0.5,
            "n": 31,
            "what_to_do": f"seen; {'x ' * 99}",
        }
        for name in EXAMPLES
        for kind in kinds
    ]
    store_tables(run, **main_tables(), claims=frame, warnings=pd.DataFrame(warnings))
    lines = report.results(run).splitlines()
    assert len(lines) <= 45
    assert max(map(len, lines[:-3])) <= report.WIDTH  # the last three hold paths
    assert [sum(line.startswith(f"{number:>2} {words}") for line in lines) for number, words in WORDS] == [1] * 11
    assert lines[-3:] == [
        f"executed notebooks  jupyter lab {run.path('notebooks')}",
        f"tables              {run.path('tables')}",
        f"all in full         python -m nbsupport status {run.dir} --tables",
    ]


def test_the_main_table_has_a_row_for_each_attack_and_the_benign_images(run: Run) -> None:
    store_tables(run, **main_tables())
    header, *rows = report.results(run).splitlines()[:17]
    assert header.split("  ")[-1] == "median distance"
    assert [row.split()[:3] for row in rows[:8]] == [
        ["normal", name, "500" if name == "benign" else "99"] for name in ("benign", *EXAMPLES)
    ]
    assert [row.split()[0] for row in rows[8:]] == ["pgd"] * 8
    assert rows[0].split()[3:] == ["10", "%", "5", "%", "[2,", "11]", "0.35"]
    assert " ".join(rows[1].split()[3:]) == "98 % [97, 99] 0.0349 10 % 5 % [2, 11] inf"
    assert " ".join(rows[7].split()[3:]) == "98 % [97, 99] 0.0349 10 % 5 % [2, 11]"  # its distance was not measured


def test_what_was_not_measured_is_left_out(run: Run) -> None:
    attacks = pd.DataFrame({"model": ["normal"], "attack": ["FGSM"], "n": [0], "success_rate": [np.nan]})
    store_tables(run, attacks=attacks.assign(success_rate_low=np.nan, success_rate_high=np.nan, mean_rms=np.nan))
    header, row, *_ = report.results(run).splitlines()
    assert row.split() == ["normal", "FGSM", "0"]
    assert "accuracy of the vote" in header


def test_a_run_without_results_says_where_to_look(run: Run) -> None:
    for stage in STAGES[:2]:
        store_something(run, stage)
    run.write_table("attacks", main_tables()["attacks"])  # left by a failed attempt, not recorded
    text = report.results(run)
    assert len(text.splitlines()) == 3
    assert f"python -m nbsupport status {run.dir} --tables" in text


def test_a_claim_that_holds_shows_the_closest_row(run: Run) -> None:
    rows = rows_of(1, {"OPTMARGIN": "holds"}) + rows_of(1, {"OPTMARGIN-adam": "holds"}, statistic=1.0, low=0.963)
    assert claim_line(run, rows).endswith(" holds     normal OPTMARGIN: .99 [.95, 1] > .95, n 99")


@pytest.mark.parametrize(
    ("verdicts", "overall", "ending"),
    [
        ("hhh", "holds", "a: .99 [.95, 1] > .95, n 99"),
        ("uuu", "undecided", "a: .99 [.95, 1] vs .95, n 99"),
        ("fff", "fails", "a: .99 [.95, 1] < .95, n 99"),
        ("hhu", "holds", "a: .99 [.95, 1] > .95, n 99; undecided: 1"),
        ("hu", "undecided", "b: .99 [.95, 1] vs .95, n 99; holds: 1"),
        ("uuf", "undecided", "c: .99 [.95, 1] < .95, n 99"),
        ("hhf", "mixed", "c: .99 [.95, 1] < .95, n 99; holds: 2"),
        ("huuff", "mixed", "d: .99 [.95, 1] < .95, n 99; undecided: 2; holds: 1; fails: 1"),
    ],
)
def test_the_verdict_of_a_claim_and_its_exceptions(run: Run, verdicts: str, overall: str, ending: str) -> None:
    line = claim_line(run, rows_of(4, dict(zip("abcde", map(NAMES.__getitem__, verdicts), strict=False))))
    assert line.startswith(" 4 vote keeps, restores accuracy")
    assert line.split()[5] == overall
    assert line.endswith(f"normal {ending}")


def test_a_claim_too_long_for_a_line_goes_on_below(run: Run) -> None:
    rows = rows_of(5, dict.fromkeys("abcd", "undecided") | dict.fromkeys("ef", "holds"))
    rows += rows_of(5, {"OPTBRITTLE - OPTMARGIN-authors": "fails"}, statistic=-0.00432, low=-0.0781, high=0.0702)
    store_tables(run, claims=pd.DataFrame(rows, columns=claims.COLUMNS))
    _, line, more, *_ = report.results(run).splitlines()
    assert len(line) <= report.WIDTH
    assert f"{line} {more.strip()}".endswith("-authors: -.0043 [-.078, .07] < .95, n 99; undecided: 4; holds: 2")


def test_a_statistic_that_was_not_measured_is_no_closest_row(run: Run) -> None:
    rows = rows_of(11, {"a": "undecided"}, statistic=np.nan) + rows_of(11, {"b": "undecided"}, statistic=12.34)
    line = claim_line(run, rows)
    assert line.startswith("11 vote withstands attackers ")
    assert "normal b: 12 [.95, 1] vs .95" in line


def test_rows_so_by_construction_decide_no_line(run: Run) -> None:
    rows = rows_of(2, {"a": "holds", "b": "holds", "c": "undecided"}, by_construction="a reason")
    assert claim_line(run, rows).split(maxsplit=5)[-1] == "-         by construction holds: 2, undecided: 1"
    rows = rows_of(6, {"a": "undecided"}) + rows_of(6, dict.fromkeys("bcd", "holds"), by_construction="a reason")
    assert claim_line(run, rows).endswith(" undecided normal a: .99 [.95, 1] vs .95, n 99; by construction holds: 3")


def test_rows_beside_a_claim_decide_no_line(run: Run) -> None:
    rows = rows_of(4, {"a": "undecided"}) + rows_of(4, dict.fromkeys("bc", "fails"), decides=False)
    assert claim_line(run, rows).endswith(" undecided normal a: .99 [.95, 1] vs .95, n 99; beside it fails: 2")


def test_verdicts_that_the_correction_takes_back_are_counted(run: Run) -> None:
    rows = rows_of(4, {"a": "holds"}) + rows_of(4, {"b": "holds"}, verdict_holm="undecided", statistic=1.0)
    assert claim_line(run, rows).endswith(" holds     normal a: .99 [.95, 1] > .95, n 99; Holm undecided: 1")


def test_warnings_are_the_worst_of_their_kind(run: Run) -> None:
    frame = pd.DataFrame(
        {
            "model": "normal",
            "attack": ["PGD", "FGSM", "OPTMARGIN", "OPTSTRONG", "OPTBRITTLE"],
            "indicator": ["still falling", "still falling", "stuck pixels", "constant at its bound", "random"],
            "share": [0.2, 0.4, 0.9, 0.3, 0.1],
            "n": 31,
            "what_to_do": ["a; raise steps", "a; raise steps", "b; raise lr", "c; d, e; or raise search_steps", "f"],
        }
    )
    store_tables(run, warnings=frame)
    heading, *lines, _, _, _, _ = report.results(run).splitlines()
    assert heading.startswith("5 warnings that an attack fell short")
    assert heading.endswith("; 2 more in tables/warnings.csv")
    assert lines == [
        "normal OPTMARGIN: stuck pixels (90 % of 31); raise lr",
        "normal FGSM: still falling (40 % of 31); raise steps",
        "normal OPTSTRONG: constant at its bound (30 % of 31); raise search_steps",
    ]
    store_tables(run, warnings=frame[:0])
    assert "warnings that" not in report.results(run)


@pytest.mark.slow
def test_the_end_of_a_smoke_run(smoke: Run) -> None:
    *lines, _, _, _ = report.results(smoke).splitlines()
    assert len(lines) <= 42
    assert max(map(len, lines)) <= report.WIDTH
    stored = set(smoke.read_table("claims", report.stored(smoke.dir, ".csv")["claims"]).claim)
    told = [number for number, words in WORDS for line in lines if line.startswith(f"{number:>2} {words}")]
    assert told == sorted(stored)
    assert len(told) >= 9
    assert sum(line.startswith(("normal", "pgd")) for line in lines) >= 16


# Tables in full


def test_all_tables_figures_and_seconds_are_told(run: Run) -> None:
    for stage in STAGES[:2]:
        store_something(run, stage)
    text = report.tables(run)
    assert "tables/01_datasets.csv\nn  share\n7  0.333\n" in text
    assert str(run.path("figures/02_training.png")) in text
    assert [line.split()[0] for line in text.splitlines()[-2:]] == list(STAGES[:2])


def test_of_tables_with_one_row_an_image_the_paths_are_told(run: Run) -> None:
    store_tables(run, images_votes=pd.DataFrame({"index": range(999)}), region=pd.DataFrame({"n": [99]}))
    text = report.tables(run)
    assert f"tables/images_votes.csv\none row an image: {run.path('tables', 'images_votes.csv')}\n" in text
    assert "tables/region.csv\n   n\n  99" in text
    assert len(text.splitlines()) < 20


def test_wide_tables_go_into_blocks_that_name_their_rows() -> None:
    frame = pd.DataFrame(
        {"model": ["normal", "pgd"], "n": [99, 100], **{f"a_rather_long_name_{i}": [i / 3, np.nan] for i in range(9)}}
    )
    lines = report.frame_text(frame).splitlines()
    assert max(map(len, lines)) <= report.WIDTH
    headers = [line.split() for line in lines if line.startswith("model")]
    assert len(headers) > 1
    assert [header[:2] for header in headers] == [["model", "n"]] * len(headers)
    assert [name for header in headers for name in header[2:]] == list(frame)[2:]
    assert sum(line.startswith("pgd     100") for line in lines) == len(headers)


def test_long_tables_and_texts_are_told_in_full() -> None:
    words = " ".join(f"word{number}" for number in range(40))
    frame = pd.DataFrame({"model": ["normal"] * 400, "what_to_do": [words] * 400})
    text = report.frame_text(frame)
    assert max(map(len, text.splitlines())) <= report.WIDTH
    assert text.split().count("word39") == 400


def test_a_table_without_rows_says_so() -> None:
    assert report.frame_text(pd.DataFrame(columns=["model", "attack"])) == "no rows"


def test_numbers_are_rounded_and_unmeasured_ones_left_out() -> None:
    frame = pd.DataFrame({"value": [2.0, 0.12345, 1234.5, np.inf, -np.inf, np.nan]})
    assert report.frame_text(frame).split() == ["value", "2", "0.123", "1234", "inf", "-inf"]
    assert len(report.frame_text(frame).split("\n")) == 7


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


# Published numbers


ATTACKED = pd.DataFrame({"model": ["normal", "pgd"], "attack": "PGD", "eps": 0.15, "success_rate": [1.0, 0.25]})


@pytest.fixture
def attacked(run: Run) -> Run:
    for stage in STAGES:
        run.finish(stage, tables={"attacks": ATTACKED} if stage == "03_attacks" else {})
    return run


def publish(run: Run, *lines: str) -> None:
    run.path("published.csv").write_text("\n".join(("table,model,eps,quantity,value,source", *lines)))


def test_published_numbers_stand_beside_those_of_the_run(attacked: Run) -> None:
    publish(
        attacked,
        'attacks,pgd,,success_rate,0.5,"He, 2018"',
        "attacks,pgd,0.15,eps,0.3,Madry 2018",
        "attacks,normal,,eps,0.1,He",
        "attacks,normal,,success_rate,1,He",
    )
    found = report.referenced(attacked, "attacks", "03_attacks")
    assert list(found.columns) == [*ATTACKED, "success_rate_reference", "eps_reference", "reference_source"]
    assert found.success_rate_reference.tolist() == [1.0, 0.5]
    assert found.eps_reference.tolist() == [0.1, 0.3]
    assert found.reference_source.tolist() == ["He", "He, 2018; Madry 2018"]
    assert "He, 2018" in report.tables(attacked)
    pd.testing.assert_frame_equal(attacked.read_table("attacks", "03_attacks"), ATTACKED)  # what was measured stays


def test_without_published_numbers_there_is_no_column(attacked: Run) -> None:
    publish(attacked)
    pd.testing.assert_frame_equal(report.referenced(attacked, "attacks", "03_attacks"), ATTACKED)
    attacked.path("published.csv").unlink()
    pd.testing.assert_frame_equal(report.referenced(attacked, "attacks", "03_attacks"), ATTACKED)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("atacks,pgd,,eps,1,He", r"table in line 3 of .*published.csv .* got 'atacks'; did you mean 'attacks'"),
        ("attacks,pgd,,success,1,He", r"quantity in line 3 .* got 'success'; did you mean 'success_rate'"),
        ("attacks,pgd,,attack,1,He", "expected quantity in line 3"),  # which is text
        ("attacks,pdg,,eps,1,He", r"line 3 of .* to name one row of the table, got 0 for model pdg"),
        ("attacks,,,eps,1,He", "to name one row of the table, got 2 for no key"),
        ("attacks,pgd,,eps,,He", "expected a number and its source in line 3 .*, got nan, 'He'"),
        ("attacks,pgd,,eps,high,He", "expected a number and its source in line 3 .*, got 'high', 'He'"),
        ("attacks,pgd,,eps,1,", "expected a number and its source in line 3 .*, got 1.*, nan"),
    ],
)
def test_a_published_row_that_fits_nothing_is_named(attacked: Run, line: str, message: str) -> None:
    publish(attacked, "attacks,pgd,,eps,1,He", line)
    with pytest.raises(ValueError, match=message):
        report.referenced(attacked, "attacks", "03_attacks")


def test_published_columns_that_are_unknown_or_lacking_are_named(attacked: Run) -> None:
    attacked.path("published.csv").write_text("table,modell,quantity,value,source\nattacks,pgd,eps,1,He")
    with pytest.raises(ValueError, match=r"column in line 2 of .* got 'modell'; did you mean 'model'"):
        report.referenced(attacked, "attacks", "03_attacks")
    attacked.path("published.csv").write_text("table,model,quantity,value\nattacks,pgd,eps,1")
    with pytest.raises(ValueError, match=r"expected .*published.csv with the columns .*; missing: source"):
        report.referenced(attacked, "attacks", "03_attacks")


def test_tables_that_are_not_made_yet_may_have_published_numbers(run: Run) -> None:
    run.finish("03_attacks", tables={"attacks": ATTACKED})
    publish(run, "adaptive,pgd,,success_rate,1,He", "attacks,pgd,,eps,1,He")
    assert report.referenced(run, "attacks", "03_attacks").eps_reference.tolist()[1] == 1
