"""The terminal follows the journal: plain lines in a log file, bars on a terminal."""

from __future__ import annotations

import fcntl
import os
import pty
import struct
import sys
import termios
from pathlib import Path

import pytest

from nbsupport.journal import Journal, Progress
from nbsupport.progress import Follower, describe, duration


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
