"""The journal: whole lines from many writers, readers that survive torn ones, rates and times left."""

from __future__ import annotations

import errno
import json
import os
import threading
from pathlib import Path
from typing import Any

import pytest

from nbsupport.store import journal
from nbsupport.store.journal import Journal


def entry(time: float, done: int, event: str = "progress", what: str = "normal/FGSM", **extra: Any) -> dict[str, Any]:
    fixed = {"stage": "03_attacks", "what": what, "total": 100, "unit": "images", "pid": 7, "host": "here"}
    return {**fixed, "time": time, "done": done, "event": event, **extra}


def test_a_report_is_read_back(tmp_path: Path) -> None:
    Journal(tmp_path).report("03_attacks", "normal/FGSM", 3, 10, "rays", success=0.5)
    [line] = journal.read(tmp_path)
    assert (line["stage"], line["what"], line["done"], line["total"], line["unit"]) == (
        *("03_attacks", "normal/FGSM", 3, 10),
        "rays",
    )
    assert (line["event"], line["success"], line["pid"]) == ("progress", 0.5, os.getpid())


def test_no_journal_has_no_entries(tmp_path: Path) -> None:
    assert journal.read(tmp_path) == []


def test_lines_of_many_writers_do_not_mix(tmp_path: Path) -> None:
    def write(number: int) -> None:
        book = Journal(tmp_path)
        for done in range(50):
            book.report("s", f"work {number}", done, 50, note="x" * 200)

    writers = [threading.Thread(target=write, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    entries = journal.read(tmp_path)
    assert len(entries) == (tmp_path / "journal.jsonl").read_bytes().count(b"\n") == 200
    for number in range(4):
        assert [line["done"] for line in entries if line["what"] == f"work {number}"] == list(range(50))


def test_a_torn_line_costs_only_itself(tmp_path: Path) -> None:
    Journal(tmp_path).report("s", "a", 1, 3)
    with (tmp_path / "journal.jsonl").open("ab") as file:
        file.write(b'{"time": 3, "sta')
    assert [line["done"] for line in journal.read(tmp_path)] == [1]
    later = Journal(tmp_path)
    later.report("s", "a", 2, 3)
    later.report("s", "a", 3, 3)
    assert [line["done"] for line in journal.read(tmp_path)] == [1, 2, 3]


REPORT = {"time": 1.5, "pid": 7, "host": "here", "stage": "s", "event": "progress"}
REPORT |= {"what": "a", "done": 1, "total": 3, "unit": "images"}
BEGUN = {name: REPORT[name] for name in ("time", "pid", "host", "stage")} | {"event": "begun"}


@pytest.mark.parametrize("line", [b"7", b"\xff", b"", b"[1]", b"null", b'"text"', b"{}"])
def test_lines_that_are_no_entries_are_skipped(line: bytes) -> None:
    entries = [REPORT, BEGUN]
    assert journal.parse([line, *(json.dumps(entry).encode() for entry in entries)]) == entries


@pytest.mark.parametrize("name", REPORT)
def test_an_entry_without_a_field_of_a_report_is_skipped(name: str) -> None:
    lacking = {key: value for key, value in REPORT.items() if key != name}
    found = journal.parse([json.dumps(lacking).encode()])
    assert found == ([lacking] if name == "what" else [])  # without it the line is about a stage


@pytest.mark.parametrize(
    ("name", "value"),
    [("time", "now"), ("pid", 1.5), ("host", None), ("stage", 3), ("event", []), ("done", "1"), ("total", None)],
)
def test_an_entry_with_a_value_of_another_kind_is_skipped(name: str, value: object) -> None:
    assert journal.parse([json.dumps({**REPORT, name: value}).encode()]) == []


def test_a_full_disk_raises(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "write", lambda descriptor, data: len(data) - 1)
    with pytest.raises(OSError, match="No space left") as caught:
        Journal(tmp_path).report("s", "a", 1, 3)
    assert caught.value.errno == errno.ENOSPC


def test_rate_and_time_left() -> None:
    [progress] = journal.summary([entry(10, 0, "started"), entry(12, 20), entry(15, 50, success=0.9)])
    assert progress.rate == pytest.approx(10)
    assert progress.time_left == pytest.approx(5)
    assert progress.extra == {"success": 0.9}
    assert not progress.complete


def test_the_rate_counts_from_where_the_work_resumed() -> None:
    entries = [entry(0, 0, "started"), entry(1, 10), entry(1000, 40, "resumed"), entry(1010, 60)]
    assert journal.summary(entries)[0].rate == pytest.approx(2)


def test_work_that_began_anew_has_a_rate_of_its_own() -> None:
    entries = [entry(0, 50), entry(1, 100), entry(100, 10), entry(110, 20)]
    assert journal.summary(entries)[0].rate == pytest.approx(1)


def test_another_process_has_a_rate_of_its_own() -> None:
    entries = [entry(0, 10), entry(100, 20), entry(1000, 20, pid=8), entry(1010, 40, pid=8)]
    assert journal.summary(entries)[0].rate == pytest.approx(2)


def test_time_left_follows_work_that_has_become_slower() -> None:
    fast = [entry(time=float(t), done=10 * t, total=200, event="progress") for t in range(11)]
    slow = [entry(time=10.0 + 4 * t, done=100 + 4 * t, total=200, event="progress") for t in range(1, 11)]
    progress = journal.summary(fast + slow)[0]
    assert progress.rate == pytest.approx(1)
    assert progress.time_left == pytest.approx(60)


def test_one_report_has_no_rate() -> None:
    [progress] = journal.summary([entry(0, 10)])
    assert progress.rate is None
    assert progress.time_left is None


def test_finished_work_has_no_time_left() -> None:
    [progress] = journal.summary([entry(0, 100, "reused")])
    assert progress.complete
    assert progress.time_left == 0


def test_pieces_of_work_keep_their_order_and_other_entries_are_passed_over() -> None:
    entries = [
        entry(0, 1, what="b"),
        {"stage": "03_attacks", "event": "begun"},
        entry(1, 1, what="a"),
        entry(2, 2, what="b"),
    ]
    assert [(progress.what, progress.done) for progress in journal.summary(entries)] == [("b", 2), ("a", 1)]


def test_lines_are_plain_json(tmp_path: Path) -> None:
    Journal(tmp_path).append(stage="s", event="begun")
    assert json.loads((tmp_path / "journal.jsonl").read_text())["event"] == "begun"
